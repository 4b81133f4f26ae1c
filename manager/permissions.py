"""Who may call what on a manager. A method that is not listed is open to nobody."""

from __future__ import annotations

from shoal.security.authorize import Permissions, allow
from shoal.security.roles import Role

API = "shoal.api.v1"

CONTROL = (
    "GetCluster", "UpdateCluster", "GetUnlockKey",
    "CreateJoinToken", "RemoveJoinToken", "RotateRootCa",
    "BackupCluster", "TransferLeadership",
    "GetNode", "ListNodes", "UpdateNode", "RemoveNode",
    "CreateService", "GetService", "ListServices", "UpdateService", "PauseServiceUpdate",
    "RemoveService",
    "ListServiceRevisions", "ListServiceEndpoints", "ExplainService", "RebalanceServices",
    "PlanChanges",
    "GetTask", "ListTasks",
    "CreateNetwork", "GetNetwork", "ListNetworks", "RemoveNetwork",
    "CreateSecret", "GetSecret", "ListSecrets", "UpdateSecret", "RotateSecret",
    "RemoveSecret",
    "CreateConfig", "GetConfig", "ListConfigs", "UpdateConfig", "RotateConfig",
    "RemoveConfig",
)  # fmt: skip
STACKS = (
    "DeployStack", "RollBackStack", "PlanStack", "RemoveStack",
    "GetStack", "ListStacks", "ListStackRevisions",
)  # fmt: skip
OWN_NODE = ("ReloadIdentity", "RenewExpired", "WatchUnlockKey")
DISPATCHER = (
    "Session", "CloseSession", "Heartbeat", "UpdateTaskStatus", "Assignments",
    "AcknowledgeEndpoints", "ReportNetworkKeys", "ReportImages",
    "AttachNetwork", "DetachNetwork", "ListNodeNetworks",
)  # fmt: skip


def permissions() -> Permissions:
    """The table of the manager."""
    people = (Role.MANAGER, Role.LOCAL)
    agents = (Role.WORKER, Role.MANAGER)
    return Permissions(
        {
            **allow(f"{API}.Control", CONTROL, *people),
            # A worker takes itself out, and nobody else: see the servicer.
            **allow(f"{API}.Control", ("RemoveNode",), *people, Role.WORKER),
            **allow(f"{API}.Logs", ("SubscribeLogs",), *people),
            **allow(f"{API}.Stacks", STACKS, *people),
            **allow(f"{API}.Watch", ("Watch",), *people),
            **allow(f"{API}.Dispatcher", DISPATCHER, *agents),
            **allow(f"{API}.LogBroker", ("ListenSubscriptions", "PublishLogs"), *agents),
            **allow(
                f"{API}.Ca",
                ("GetRootCaCertificate", "IssueNodeCertificate"),
                Role.JOINER,
                Role.WORKER,
                Role.MANAGER,
                Role.LOCAL,
            ),
            **allow(f"{API}.Raft", ("Stream", "SendSnapshot"), Role.MANAGER),
            **allow(f"{API}.RaftMembership", ("Join", "Leave"), Role.MANAGER),
            **allow(f"{API}.Ca", ("ConfirmNodeCertificate",), *agents),
            **allow(f"{API}.ManagerControl", OWN_NODE, Role.LOCAL),
            **allow(f"{API}.Telemetry", ("GetMetrics", "GetReadiness"), Role.LOCAL),
        }
    )
