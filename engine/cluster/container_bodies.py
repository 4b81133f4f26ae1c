"""The container of a service's tasks, read from Docker's JSON. Pure.

Each body gives the row it stands for. `before` is what the service has by now: what a client cannot
say, or does not know, stays as it is there.
"""

from __future__ import annotations

import base64
import binascii

from msgspec import Struct, field

from engine.cluster.choices import chosen
from shoal.docker.specs import DEFAULT_ISOLATION
from shoal.errors import InvalidArgument
from shoal.model.enums import MountPropagation, MountRecursive, MountType
from shoal.model.specs import ContainerSpec
from shoal.model.types import (
    DeviceMapping,
    DnsConfig,
    Driver,
    FileReference,
    FileRotation,
    HealthCheck,
    Mount,
    Privileges,
    Ulimit,
)

_WHERE = "TaskTemplate.ContainerSpec"


class Body(Struct, frozen=True, rename="pascal"):
    """Docker's spelling."""


class DriverBody(Body, frozen=True):
    """A pluggable part."""

    name: str = ""
    options: dict[str, str] = field(default_factory=dict)

    def row(self) -> Driver:
        """The same in our words."""
        return Driver(self.name, self.options)


class CredentialBody(Body, frozen=True):
    """`Privileges.CredentialSpec`."""

    config: str = ""
    file: str = ""
    registry: str = ""


class SelinuxBody(Body, frozen=True):
    """`Privileges.SELinuxContext`."""

    disable: bool = False
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


class SeccompBody(Body, frozen=True):
    """`Privileges.Seccomp`."""

    mode: str = ""
    profile: str = ""


class AppArmorBody(Body, frozen=True):
    """`Privileges.AppArmor`."""

    mode: str = ""


class PrivilegesBody(Body, frozen=True):
    """`Privileges`."""

    credential_spec: CredentialBody = CredentialBody()
    selinux_context: SelinuxBody = field(default=SelinuxBody(), name="SELinuxContext")
    seccomp: SeccompBody = SeccompBody()
    app_armor: AppArmorBody = AppArmorBody()
    no_new_privileges: bool = False

    def row(self) -> Privileges:
        """The same in our words. Raises: InvalidArgument."""
        credential, selinux = self.credential_spec, self.selinux_context
        try:
            profile = base64.b64decode(self.seccomp.profile, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidArgument(f"{_WHERE}.Privileges.Seccomp.Profile: is not base64") from None
        return Privileges(
            credential_spec_config=credential.config,
            credential_spec_file=credential.file,
            credential_spec_registry=credential.registry,
            selinux_disable=selinux.disable,
            selinux_user=selinux.user,
            selinux_role=selinux.role,
            selinux_type=selinux.type,
            selinux_level=selinux.level,
            seccomp_mode=self.seccomp.mode,
            seccomp_profile=profile,
            apparmor_mode=self.app_armor.mode,
            no_new_privileges=self.no_new_privileges,
        )


class BindBody(Body, frozen=True):
    """`Mounts[].BindOptions`."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False

    def recursive(self) -> MountRecursive:
        """How mounts below are taken along. Raises: InvalidArgument when two are asked for."""
        wished = {
            MountRecursive.DISABLED: self.non_recursive,
            MountRecursive.WRITABLE: self.read_only_non_recursive,
            MountRecursive.READONLY: self.read_only_force_recursive,
        }
        found = [one for one, wanted in wished.items() if wanted]
        if len(found) > 1:
            raise InvalidArgument(
                f"{_WHERE}.Mounts: only one of NonRecursive, ReadOnlyNonRecursive and"
                " ReadOnlyForceRecursive can be"
            )
        return found[0] if found else MountRecursive.ENABLED


class VolumeBody(Body, frozen=True):
    """`Mounts[].VolumeOptions`."""

    no_copy: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    subpath: str = ""
    driver_config: DriverBody | None = None


class ImageMountBody(Body, frozen=True):
    """`Mounts[].ImageOptions`."""

    subpath: str = ""


class TmpfsBody(Body, frozen=True):
    """`Mounts[].TmpfsOptions`."""

    size_bytes: int = 0
    mode: int = 0
    options: tuple[tuple[str, ...], ...] = ()


class MountBody(Body, frozen=True):
    """One of `Mounts`."""

    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindBody = BindBody()
    volume_options: VolumeBody = VolumeBody()
    image_options: ImageMountBody = ImageMountBody()
    tmpfs_options: TmpfsBody = TmpfsBody()

    def row(self) -> Mount:
        """The same in our words. Raises: InvalidArgument."""
        bind, volume, tmpfs = self.bind_options, self.volume_options, self.tmpfs_options
        kind = chosen(MountType, self.type, "Mount.Type", MountType.BIND)
        of_image = kind is MountType.IMAGE
        driver = volume.driver_config
        if volume.subpath if of_image else self.image_options.subpath:
            raise InvalidArgument(f"{_WHERE}.Mounts: Subpath is of another type than {self.type}")
        return Mount(
            type=kind,
            source=self.source,
            target=self.target,
            read_only=self.read_only,
            consistency=self.consistency,
            propagation=chosen(
                MountPropagation, bind.propagation, "Propagation", MountPropagation.RPRIVATE
            ),
            recursive=bind.recursive(),
            create_source=bind.create_mountpoint,
            volume_driver=None if driver is None else driver.row(),
            volume_labels=volume.labels,
            volume_nocopy=volume.no_copy,
            subpath=self.image_options.subpath if of_image else volume.subpath,
            tmpfs_size_bytes=tmpfs.size_bytes,
            tmpfs_mode=tmpfs.mode,
            tmpfs_options=",".join("=".join(one) for one in tmpfs.options),
        )


class FileBody(Body, frozen=True):
    """`Secrets[].File`, `Configs[].File`."""

    name: str = ""
    uid: str = field(default="", name="UID")
    gid: str = field(default="", name="GID")
    mode: int = 0


class SecretUseBody(Body, frozen=True):
    """One of `Secrets`."""

    file: FileBody = FileBody()
    runtime: Body | None = None
    secret_id: str = field(default="", name="SecretID")
    secret_name: str = ""

    def row(self) -> FileReference:
        """The same in our words."""
        return _reference(self.secret_id, self.secret_name, self.file, self.runtime)


class ConfigUseBody(Body, frozen=True):
    """One of `Configs`."""

    file: FileBody = FileBody()
    runtime: Body | None = None
    config_id: str = field(default="", name="ConfigID")
    config_name: str = ""

    def row(self) -> FileReference:
        """The same in our words."""
        return _reference(self.config_id, self.config_name, self.file, self.runtime)


class HealthBody(Body, frozen=True):
    """`Healthcheck`."""

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    retries: int = 0
    start_period: int = 0
    start_interval: int = 0

    def row(self) -> HealthCheck:
        """The same in our words."""
        return HealthCheck(
            test=self.test,
            interval_ns=self.interval,
            timeout_ns=self.timeout,
            retries=self.retries,
            start_period_ns=self.start_period,
            start_interval_ns=self.start_interval,
        )


class DnsBody(Body, frozen=True):
    """`DNSConfig`."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class UlimitBody(Body, frozen=True):
    """One of `Ulimits`."""

    name: str = ""
    soft: int = 0
    hard: int = 0


class DeviceBody(Body, frozen=True):
    """One of `Devices`, which are ours."""

    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""

    def row(self) -> DeviceMapping:
        """The same in our words."""
        return DeviceMapping(self.path_on_host, self.path_in_container, self.cgroup_permissions)


class RotationBody(Body, frozen=True):
    """`FileRotation`, which is ours."""

    signal: str = ""


class ContainerBody(Body, frozen=True):
    """`TaskTemplate.ContainerSpec`."""

    image: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    hostname: str = ""
    env: tuple[str, ...] = ()
    dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    privileges: PrivilegesBody = PrivilegesBody()
    init: bool | None = None
    stop_signal: str = ""
    tty: bool = field(default=False, name="TTY")
    open_stdin: bool = False
    read_only: bool = False
    mounts: tuple[MountBody, ...] = ()
    stop_grace_period: int | None = None
    healthcheck: HealthBody | None = None
    hosts: tuple[str, ...] = ()
    dns_config: DnsBody = field(default=DnsBody(), name="DNSConfig")
    secrets: tuple[SecretUseBody, ...] = ()
    configs: tuple[ConfigUseBody, ...] = ()
    isolation: str = ""
    sysctls: dict[str, str] = field(default_factory=dict)
    capability_add: tuple[str, ...] = ()
    capability_drop: tuple[str, ...] = ()
    ulimits: tuple[UlimitBody, ...] = ()
    oom_score_adj: int = 0
    devices: tuple[DeviceBody, ...] | None = None
    file_rotation: RotationBody | None = None

    def row(self, before: ContainerSpec) -> ContainerSpec:
        """The same in our words; credentials are not in it, and stay. Raises: InvalidArgument."""
        dns, devices, rotation = self.dns_config, self.devices, self.file_rotation
        return before.replaced(
            image=self.image,
            labels=self.labels,
            command=self.command,
            args=self.args,
            hostname=self.hostname,
            env=self.env,
            dir=self.dir,
            user=self.user,
            groups=self.groups,
            privileges=self.privileges.row(),
            init=self.init,
            stop_signal=self.stop_signal,
            tty=self.tty,
            open_stdin=self.open_stdin,
            read_only=self.read_only,
            mounts=tuple(one.row() for one in self.mounts),
            stop_grace_period_ns=self.stop_grace_period,
            health_check=self.healthcheck and self.healthcheck.row(),
            hosts=self.hosts,
            dns=DnsConfig(dns.nameservers, dns.search, dns.options),
            secrets=tuple(one.row() for one in self.secrets),
            configs=tuple(one.row() for one in self.configs),
            isolation=_isolation(self.isolation, before.isolation),
            sysctls=self.sysctls,
            capability_add=self.capability_add,
            capability_drop=self.capability_drop,
            ulimits=tuple(Ulimit(one.name, one.soft, one.hard) for one in self.ulimits),
            oom_score_adj=self.oom_score_adj,
            devices=before.devices if devices is None else tuple(one.row() for one in devices),
            file_rotation=before.file_rotation
            if rotation is None
            else FileRotation(rotation.signal),
        )


def _reference(object_id: str, name: str, file: FileBody, runtime: Body | None) -> FileReference:
    return FileReference(
        id=object_id,
        name=name,
        target=file.name,
        uid=file.uid,
        gid=file.gid,
        mode=file.mode,
        runtime=runtime is not None,
    )


def _isolation(wished: str, before: str) -> str:
    """Shown as the default where nothing was said: coming back, it is no change."""
    if wished in {"", DEFAULT_ISOLATION}:
        return before if before in {"", DEFAULT_ISOLATION} else ""
    return wished
