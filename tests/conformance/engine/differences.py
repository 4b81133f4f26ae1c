"""Where this node answers otherwise than dockerd 20.10 did, each with its reason.

A command that is listed must differ: an entry nobody needs any more is an error, too.
"""

from __future__ import annotations

from collections.abc import Mapping

_WHO = "the names, versions and directories of this node are its own"
_HUB = "the recording had a mirror of docker.io; no name resolves here"
_STORE = "layers are kept elsewhere: no `merged` and `work` directories for an image"
_IMAGES = "the recording began with more images"
_STEPS = "a step that changes the configuration alone runs no container"
_OCI = "manifests made here are OCI's, of another size"
_SHARED = "which layers and steps of other images stay depends on what was built before"
_TRUNCATED = "a digest or an answer of the one recorded image"
_PRIVILEGED = "the recording's machine could not give all capabilities to a runtime; here it works"
_BEFORE = "an earlier part of the recording, done by hand, had left something"

DIFFERENCES: Mapping[tuple[str, str], str] = {
    ("basic", "docker version"): _WHO,
    ("basic", "docker info"): _WHO,
    ("basic", "docker search busybox"): "no index is searched, and the answer says so",
    ("run", "docker run --rm nosuchimg:1 true"): _HUB,
    ("run", "docker run --rm busybox /etc"): "`is a directory`, as runc says since 1.2",
    ("run", "docker run --rm --privileged --platform linux/amd64 busybox true"): _PRIVILEGED,
    ("container", "docker inspect -s c1"): "the sizes stand at the end of the object",
    ("container", "docker inspect busybox"): _STORE,
    ("container", "docker inspect bridge"): "the bridge has a name of its own, beside docker0",
    ("container", "docker stats --no-stream"): "the init and the program are two processes",
    ("container", "docker stats -a --no-stream"): "the init and the program are two processes",
    ("container", "docker exec -e X=1 -w /tmp -u 1:1 --privileged c1 env"): _PRIVILEGED,
    ("container", "docker exec c1 /nosuch"): "127, as for run, and as Docker since 23",
    ("container", "docker kill lg"): _BEFORE,
    ("container", "docker pause c1"): _BEFORE,
    ("image", "docker image ls"): _IMAGES,
    ("image", "docker images -a --digests --no-trunc"): _IMAGES,
    ("image", "docker images --filter reference='b*' --format '{{json .}}'"): _IMAGES,
    ("image", "docker image inspect busybox"): _STORE,
    ("image", "docker push 127.0.0.1:5000/lib/bb:v1"): _OCI,
    ("image", "docker push -a 127.0.0.1:5000/lib/bb"): _OCI,
    ("image", "docker rmi hello-world:latest hello-world:linux"): _IMAGES,
    ("image", "docker pull hello-world"): _HUB,
    ("image", "docker run --rm --pull always hello-world"): _HUB,
    ("image", "docker rmi hello-world:latest"): _HUB,
    ("image", "docker save -o s.tar busybox hello-world && tar tf s.tar"): _HUB,
    ("image", "docker save busybox | wc -c"): _TRUNCATED,
    ("image", "docker rmi hello-world; docker load -i s.tar"): _HUB,
    ("image", "docker load < s.tar"): _HUB,
    ("image", "docker load -q -i s.tar"): _HUB,
    ("image", "docker build -t built:1 ."): _STEPS,
    (
        "image",
        "docker build -q -t built:2 --build-arg V=2 --label l=1 --no-cache --pull=false -m 64m"
        " --cpu-shares 100 --network none --add-host h:1.1.1.1 --shm-size 1m --ulimit nofile=10:10"
        ' --target "" --force-rm .',
    ): "both fail for want of descriptors, at another one",
    ("image", "docker build -t built:3 - < Dockerfile"): _STEPS,
    ("image", 'printf "FROM nosuchimg:9\n" | docker build -'): _HUB,
    ("image", "docker rmi built:2 built:3 built:4 built:5"): _SHARED,
    ("image", "docker image prune -f"): _SHARED,
    ("network", "docker network inspect bridge"): "the bridge has a name of its own",
    ("network", "docker network disconnect n2 nc1"): _BEFORE,
    ("system", "docker system df"): _IMAGES,
    ("system", "docker system df -v"): "the container of a failed build is removed with it",
    ("system", "docker system df --format '{{json .}}'"): _IMAGES,
    ("system", "docker system prune -f"): "the container of a failed build is removed with it",
    ("system", "docker events --since 10m --until 0s"): "the recording was cut to its beginning",
    ("system", "docker events --filter bad=1 --until 0s --since 1s"): "other events in that second",
    ("attach", "docker logs ci"): "what was typed into it at a terminal is not typed here",
    ("registry", "docker push 127.0.0.1:5000/lib/big:1"): _OCI,
    ("registry", "docker rmi 127.0.0.1:5000/lib/big:1"): _SHARED,
    ("registry", "docker rmi x:1"): _SHARED,
    ("registry", "docker rmi y:1"): _SHARED,
    ("registry", "docker image inspect busybox"): _STORE,
    (
        "registry",
        "docker pull 127.0.0.1:5000/lib/big@sha256:"
        "4bee038b4c21273c1368cf561d7c87117b0e07776006ec7986b4ae8210923eb8",
    ): _TRUNCATED,
    (
        "registry",
        "docker image inspect 127.0.0.1:5000/lib/big@sha256:"
        "4bee038b4c21273c1368cf561d7c87117b0e07776006ec7986b4ae8210923eb8",
    ): _TRUNCATED,
}
"""By group and command."""
