#!/usr/bin/env python3
"""kubernetes.py check FILE: whether what kustomize has rendered holds what it has to.
kubernetes.py run FILE DIRECTORY: prints the arguments of `docker run`, one a line, that give a container what the DaemonSet
gives its own: user, capabilities, settings, mounts, limits. kubernetes.py init FILE DIRECTORY: the same of its first
container. What comes from the node or from a secret is in DIRECTORY, by the name of the volume; the hugepages are the
machine's, and the network is the container's own.
kubernetes.py hugepages FILE: prints how many bytes of hugepages the DaemonSet gives its container, for which `docker run` has
no option."""

import sys

import yaml


def read(file):
    with open(file, encoding="utf-8") as text:
        return [one for one in yaml.safe_load_all(text) if one]


def of_kind(objects, kind):
    return [one for one in objects if one["kind"] == kind]


def settings(objects, container):
    """The container's variables, those of its ConfigMap too."""
    maps = {one["metadata"]["name"]: one["data"] for one in of_kind(objects, "ConfigMap")}
    found = {}
    for source in container["envFrom"]:
        found |= maps[source["configMapRef"]["name"]]
    return found | {one["name"]: one["value"] for one in container["env"]}


def check(file):
    objects = read(file)
    (pod,) = [one["spec"]["template"]["spec"] for one in of_kind(objects, "DaemonSet")]
    (container,) = pod["containers"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    wrong = []

    def expect(holds, what):
        if not holds:
            wrong.append(what)

    context = container["securityContext"]
    has_devices = "/dev/vfio" in mounts
    expect(context["readOnlyRootFilesystem"], "the root file system can be written to")
    expect(context.get("privileged", False) == has_devices, "a container is privileged without devices, or has them and is not")
    if not has_devices:
        expect(context["capabilities"] == {"drop": ["ALL"], "add": ["SYS_NICE"]}, f"capabilities: {context['capabilities']}")
        expect(context["allowPrivilegeEscalation"] is False, "privileges can be gained")
    for name, value in settings(objects, container).items():
        expect(name.startswith("OPI_SPDK_"), f"{name} is no setting")
        # A file named by a setting must be in a volume; a secret must be readable by its owner only.
        for path in value.split(":") if value.startswith("/") else []:
            mount = mounts.get(path.rsplit("/", 1)[0])
            expect(mount, f"{name}: nothing is mounted for {path}")
            secret = mount and volumes[mount["name"]].get("secret")
            expect(not secret or secret["defaultMode"] == 0o400, f"{name}: others can read {path}")
    for mount in container["volumeMounts"]:
        expect(mount["name"] in volumes, f"there is no volume {mount['name']}")
    (setup,) = pod["initContainers"]
    kept = {volumes[one["name"]].get("hostPath", {}).get("path") for one in setup["volumeMounts"] if one["mountPath"] == "/run"}
    expect(kept == {"/run"}, "setup writes its way back into the container: it goes with the pod")
    expect(pod.get("hostPID", False) == has_devices, "setup sees processes of the node without devices, or does not with them")
    # Quality of service is Guaranteed if in each container, init containers included, CPU and memory have limits that equal
    # the requests. Only then does the kubelet's static CPU manager give exclusive cores.
    for one in [*pod["initContainers"], *pod["containers"]]:
        resources = one.get("resources", {})
        limits = resources.get("limits", {})
        requests = limits | resources.get("requests", {})
        for kind in ("cpu", "memory"):
            expect(
                kind in limits and requests[kind] == limits[kind],
                f"{one['name']}: {kind} has limit {limits.get(kind)} and request {requests.get(kind)}: the pod is not Guaranteed",
            )
    cores = settings(objects, container)["OPI_SPDK_CORES"]
    _, last, count = cores.partition("last:")
    expect(last, f"cores {cores}: which a pod gets is not known before")
    expect(last and int(count) < int(container["resources"]["limits"]["cpu"]), f"cores {cores}: none is left beside the reactors")
    for line in wrong:
        print(f"{file}: {line}", file=sys.stderr)
    return not wrong


def run(file, directory):
    objects = read(file)
    (pod,) = [one["spec"]["template"]["spec"] for one in of_kind(objects, "DaemonSet")]
    (container,) = pod["containers"]
    context = container["securityContext"]
    arguments = ["--user", str(context["runAsUser"]), "--network", "none"]
    arguments += ["--read-only"] * context["readOnlyRootFilesystem"]
    arguments += ["--security-opt", "no-new-privileges"] * (not context["allowPrivilegeEscalation"])
    for what in ("drop", "add"):
        for capability in context["capabilities"][what]:
            arguments += [f"--cap-{what}", capability]
    limits = container["resources"]["limits"]
    arguments += ["--cpus", limits["cpu"], "--memory", str(size(limits["memory"]))]
    for name, value in settings(objects, container).items():
        arguments += ["--env", f"{name}={value}"]
    arguments += mounts(pod, container, directory)
    print("\n".join(arguments))
    return True


def size(quantity):
    """Kubernetes' quantity of memory, in bytes."""
    return int(quantity[:-2]) << {"Mi": 20, "Gi": 30}[quantity[-2:]]


def hugepages(file):
    (pod,) = [one["spec"]["template"]["spec"] for one in of_kind(read(file), "DaemonSet")]
    (container,) = pod["containers"]
    print(size(container["resources"]["limits"]["hugepages-2Mi"]))
    return True


def init(file, directory):
    objects = read(file)
    (pod,) = [one["spec"]["template"]["spec"] for one in of_kind(objects, "DaemonSet")]
    (container,) = pod["initContainers"]
    # What --privileged gives, as far as an engine in a container can give it.
    arguments = ["--network", "none", "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE"]
    for what in ("seccomp", "apparmor", "systempaths"):
        arguments += ["--security-opt", f"{what}=unconfined"]
    arguments += mounts(pod, container, directory)
    entry, *command = container["command"]
    print("\n".join([*arguments, "--entrypoint", entry, "opi-spdk", *command]))
    return True


def mounts(pod, container, directory):
    """The options of the container's mounts."""
    arguments = []
    volumes = {one["name"]: one for one in pod["volumes"]}
    for mount in container["volumeMounts"]:
        path, volume = mount["mountPath"], volumes[mount["name"]]
        medium = volume.get("emptyDir", {}).get("medium")
        if medium == "Memory":
            arguments += ["--tmpfs", path]
        else:
            source = path if medium else f"{directory}/{mount['name']}"
            arguments += ["--volume", f"{source}:{path}{':ro' * mount.get('readOnly', False)}"]
    return arguments


if __name__ == "__main__":
    sys.exit(0 if {"check": check, "run": run, "init": init, "hugepages": hugepages}[sys.argv[1]](*sys.argv[2:]) else 1)
