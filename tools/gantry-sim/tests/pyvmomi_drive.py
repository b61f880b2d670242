"""Drives gantry-sim with pyVmomi, the official client, and asserts every step.

In: the JSON line that gantry-sim prints, as the first argument; which functions, by the beginning
of their names, as the second (step_ when absent). Out: one line a step; the first
step that goes wrong ends with its traceback. They run in their order here.
"""

import json
import ssl
import sys
import threading
import time

from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

READY = json.loads(sys.argv[1])
VC_PORT = int(READY["url"].split(":")[2].split("/")[0])
with open(READY["password_file"]) as file:
    PASSWORD = file.read().strip()


def connect(url=READY["url"], password=PASSWORD):
    port = int(url.split(":")[2].split("/")[0])
    context = ssl._create_unverified_context()
    return SmartConnect(host="127.0.0.1", port=port, user=READY["user"], pwd=password, sslContext=context)


def entities(si, kind):
    content = si.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
    try:
        return list(view.view)
    finally:
        view.Destroy()


def machine(si, name):
    (found,) = [vm for vm in entities(si, vim.VirtualMachine) if vm.name == name]
    return found


def disks(config):
    return [d for d in config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]


def raises(fault, call, *arguments):
    try:
        call(*arguments)
    except fault as raised:
        return raised
    raise AssertionError("%s was not raised by %s" % (fault, call))


def step_login(si):
    about = si.content.about
    assert about.apiType == "VirtualCenter" and about.apiVersion.startswith("8.0"), about
    assert si.content.sessionManager.currentSession.userName == READY["user"]
    raises(vim.fault.InvalidLogin, connect, READY["url"], "wrong")
    now = si.CurrentTime()
    assert abs(now.timestamp() - time.time()) < 60
    assert si.serverClock is not None
    session = si.content.sessionManager.currentSession
    assert si.content.sessionManager.SessionIsActive(session.key, session.userName)
    assert len(si.content.sessionManager.sessionList) >= 1


def step_not_authenticated(si):
    other = connect()
    root = other.content.rootFolder
    other.content.sessionManager.Logout()
    raises(vim.fault.NotAuthenticated, lambda: root.name)


def step_inventory_by_container_view(si):
    names = sorted(vm.name for vm in entities(si, vim.VirtualMachine))
    assert names == ["db0", "gantry-proxy0", "golden", "odd0", "old0", "web0", "web1"], names
    assert len(entities(si, vim.HostSystem)) == 2
    assert len(entities(si, vim.Datastore)) == 2
    assert len(entities(si, vim.ClusterComputeResource)) == 1
    vm = machine(si, "db0")
    assert vm.parent.name == "Databases" and vm.parent.parent.name == "Production"
    assert vm.runtime.powerState == "poweredOn"
    assert vm.config.firmware == "efi" and vm.config.changeTrackingEnabled
    both = disks(vm.config)
    assert [d.capacityInBytes for d in both] == [64 << 20, 128 << 20]
    assert all(d.backing.uuid.startswith("6000C29") for d in both)
    assert both[1].backing.fileName == "[nfs0] db0/db0_1.vmdk", both[1].backing.fileName
    assert both[1].backing.datastore.summary.type == "NFS"
    assert vm.resourcePool.name == "Critical" and vm.resourcePool.parent.name == "Gold"
    assert vm.summary.config.tpmPresent is True
    fields = {f.key: f.name for f in si.content.customFieldsManager.field}
    values = {fields[v.key]: v.value for v in vm.customValue}
    assert values == {"Backup": "hourly", "Owner": "data"}, values
    assert vm.network[0].name == "VM Network"
    assert machine(si, "golden").config.template and machine(si, "golden").resourcePool is None


def traversal_spec():
    pc = vmodl.query.PropertyCollector
    again = pc.SelectionSpec(name="folder")
    to = lambda ty, path: pc.TraversalSpec(type=ty, path=path, skip=False, selectSet=[again])
    down = pc.TraversalSpec(
        name="folder", type=vim.Folder, path="childEntity", skip=False,
        selectSet=[again, to(vim.Datacenter, "vmFolder"), to(vim.Datacenter, "hostFolder")])
    return [down]


def step_inventory_by_traversal(si):
    pc = vmodl.query.PropertyCollector
    content = si.RetrieveContent()
    spec = pc.FilterSpec(
        objectSet=[pc.ObjectSpec(obj=content.rootFolder, skip=False, selectSet=traversal_spec())],
        propSet=[
            pc.PropertySpec(type=vim.VirtualMachine, pathSet=["name", "config.hardware.device"]),
            pc.PropertySpec(type=vim.Folder, pathSet=["name"]),
        ])
    found = content.propertyCollector.RetrieveContents([spec])
    vms = [o for o in found if isinstance(o.obj, vim.VirtualMachine)]
    assert len(vms) == 7, len(vms)
    devices = {p.name: p.val for p in vms[0].propSet}["config.hardware.device"]
    assert any(isinstance(d, vim.vm.device.ParaVirtualSCSIController) for d in devices)
    # Paged: the client asks for three at a time.
    page = content.propertyCollector.RetrievePropertiesEx([spec], pc.RetrieveOptions(maxObjects=3))
    pages, objects = 1, list(page.objects)
    while page.token:
        page = content.propertyCollector.ContinueRetrievePropertiesEx(page.token)
        assert len(page.objects) <= 3
        objects += page.objects
        pages += 1
    assert pages > 2 and len(objects) == len(found), (pages, len(objects), len(found))
    raises(vmodl.fault.InvalidArgument, content.propertyCollector.ContinueRetrievePropertiesEx, "x")
    spec.propSet = [pc.PropertySpec(type=vim.VirtualMachine, pathSet=["nonsense"])]
    raises(vmodl.query.InvalidProperty, content.propertyCollector.RetrieveContents, [spec])


def step_search(si):
    index = si.content.searchIndex
    vm = machine(si, "web1")
    assert index.FindByUuid(None, vm.config.uuid, True) == vm
    assert index.FindByUuid(None, vm.config.instanceUuid.upper(), True, True) == vm
    assert index.FindByUuid(None, "00000000-0000-0000-0000-000000000000", True) is None
    assert index.FindByInventoryPath("DC0/vm/Production/Web/web1") == vm
    assert index.FindByInventoryPath("DC0/vm/none") is None
    assert index.FindByDnsName(None, "web1.guest.example", True) == vm
    assert index.FindByDatastorePath(vm.parent.parent.parent.parent, "[vmfs0] web1/web1.vmx") == vm


def step_gone_objects(si):
    gone = vim.VirtualMachine("vm-99999", si._stub)
    fault = raises(vmodl.fault.ManagedObjectNotFound, lambda: gone.name)
    assert fault.obj._moId == "vm-99999", fault
    view = si.content.viewManager.CreateContainerView(si.content.rootFolder, [vim.Folder], False)
    assert view.view == [] and len(entities(si, vim.Folder)) > 4
    view.Destroy()
    raises(vmodl.fault.ManagedObjectNotFound, lambda: view.view)


def filter_spec(obj, kind, paths, select=()):
    pc = vmodl.query.PropertyCollector
    return pc.FilterSpec(
        objectSet=[pc.ObjectSpec(obj=obj, skip=False, selectSet=list(select))],
        propSet=[pc.PropertySpec(type=kind, pathSet=paths)])


def step_waits(si):
    pc = vmodl.query.PropertyCollector
    content = si.RetrieveContent()
    own = content.propertyCollector.CreatePropertyCollector()
    spec = filter_spec(content.rootFolder, vim.VirtualMachine, ["name", "runtime"], traversal_spec())
    created = own.CreateFilter(spec, True)
    options = pc.WaitOptions(maxWaitSeconds=0, maxObjectUpdates=4)
    first = own.WaitForUpdatesEx("", options)
    assert first.truncated and len(first.filterSet[0].objectSet) == 4, first
    rest = own.WaitForUpdatesEx(first.version, options)
    assert not rest.truncated and len(rest.filterSet[0].objectSet) == 3
    assert all(u.kind == "enter" for u in rest.filterSet[0].objectSet)
    assert rest.filterSet[0].filter == created
    assert own.WaitForUpdatesEx(rest.version, options) is None
    # An answer that got lost is given again.
    again = own.WaitForUpdatesEx(first.version, options)
    assert len(again.filterSet[0].objectSet) == 3
    raises(vmodl.query.InvalidCollectorVersion, own.WaitForUpdatesEx, "77", options)
    # A wait ends when it is cancelled, and after its time.
    other = threading.Timer(0.3, own.CancelWaitForUpdates)
    other.start()
    started = time.monotonic()
    raises(vmodl.fault.RequestCanceled, own.WaitForUpdates, again.version)
    assert 0.2 < time.monotonic() - started < 5
    started = time.monotonic()
    assert own.WaitForUpdatesEx(again.version, pc.WaitOptions(maxWaitSeconds=1)) is None
    assert 0.9 < time.monotonic() - started < 5
    created.Destroy()
    own.Destroy()


def step_waits_see_changes(si):
    """Both kinds of waiting, nested changes and whole ones, entering and leaving."""
    pc = vmodl.query.PropertyCollector
    content = si.RetrieveContent()
    own = content.propertyCollector.CreatePropertyCollector()
    vm = machine(si, "web1")
    whole = own.CreateFilter(filter_spec(vm, vim.VirtualMachine, ["config"]), False)
    version = own.WaitForUpdates("").version
    field = content.customFieldsManager.field[0].key
    WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="seen")))
    update = own.WaitForUpdates(version)
    (change,) = update.filterSet[0].objectSet[0].changeSet
    assert change.name == "config" and change.val.annotation == "seen", change
    whole.Destroy()
    nested = own.CreateFilter(filter_spec(vm, vim.VirtualMachine, ["config", "customValue"]), True)
    version = own.WaitForUpdatesEx("", None).version
    WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="again")))
    content.customFieldsManager.SetField(vm, field, "weekly")
    names, deadline = set(), time.monotonic() + 5
    while "customValue" not in names and time.monotonic() < deadline:
        update = own.WaitForUpdatesEx(version, pc.WaitOptions(maxWaitSeconds=5))
        version = update.version
        changes = update.filterSet[0].objectSet[0].changeSet
        names |= {change.name for change in changes}
    assert "config.annotation" in names and "config" not in names, names
    assert "customValue" in names, names
    nested.Destroy()
    spec = filter_spec(content.rootFolder, vim.Folder, ["name"], traversal_spec())
    own.CreateFilter(spec, True)
    version = own.WaitForUpdatesEx("", None).version
    folder = vm.parent.CreateFolder("New")
    update = own.WaitForUpdatesEx(version, pc.WaitOptions(maxWaitSeconds=5))
    (entered,) = [o for o in update.filterSet[0].objectSet if o.kind == "enter"]
    assert entered.obj == folder and entered.changeSet[0].val == "New"
    raises(vim.fault.DuplicateName, vm.parent.CreateFolder, "New")
    own.Destroy()


def task_fault(task, fault):
    return raises(fault, WaitForTask, task)


def step_change_tracking_snapshot_and_areas(si):
    vm = machine(si, "web0")
    assert vm.capability.changeTrackingSupported and not vm.config.changeTrackingEnabled
    task = vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True))
    assert WaitForTask(task) == "success"
    assert task.info.name.info.wsdlName == "ReconfigVM_Task" and task.info.entity == vm
    assert task.info.entityName == "web0" and task.info.completeTime
    assert vm.config.changeTrackingEnabled
    live = disks(vm.config)[0]
    assert live.backing.changeId is None, "tracking needs a stun"
    first = WaitForTask(vm.CreateSnapshot_Task("first", "a test", False, True)) and vm.snapshot
    snapshot = first.currentSnapshot
    tree = first.rootSnapshotList[0]
    assert (tree.name, tree.quiesced, tree.state, tree.vm) == ("first", True, "poweredOff", vm)
    frozen = disks(snapshot.config)[0]
    assert frozen.backing.fileName == "[vmfs0] web0/web0.vmdk" and frozen.backing.changeId
    live = disks(vm.config)[0]
    assert live.backing.fileName == "[vmfs0] web0/web0-000001.vmdk", live.backing.fileName
    assert live.backing.parent.fileName == frozen.backing.fileName
    assert live.backing.deltaDiskFormat == "seSparseFormat"
    assert live.backing.uuid == frozen.backing.uuid
    assert [f.name for f in vm.layoutEx.file if f.name.endswith("-sesparse.vmdk")]
    areas = vm.QueryChangedDiskAreas(snapshot, frozen.key, 0, "*")
    assert areas.startOffset == 0 and areas.length == frozen.capacityInBytes
    again = vm.QueryChangedDiskAreas(snapshot, frozen.key, 0, frozen.backing.changeId)
    assert not again.changedArea
    raises(vmodl.fault.InvalidArgument, vm.QueryChangedDiskAreas, snapshot, frozen.key, 0, "x/1")
    raises(vmodl.fault.InvalidArgument, vm.QueryChangedDiskAreas, snapshot, 77, 0, "*")
    size = frozen.capacityInBytes
    raises(vmodl.fault.InvalidArgument, vm.QueryChangedDiskAreas, snapshot, frozen.key, size, "*")
    raises(vim.fault.FileFault, vm.QueryChangedDiskAreas, None, frozen.key, 0, "*")
    old = machine(si, "old0")
    task_fault(
        old.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)),
        vmodl.fault.NotSupported)


def attach_spec(device_file, mode="independent_nonpersistent", unit=-1, controller=1000):
    disk = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=controller, unitNumber=unit, capacityInKB=0,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=device_file, diskMode=mode))
    change = vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)
    return vim.vm.ConfigSpec(deviceChange=[change])


def step_hot_add(si):
    vm, proxy = machine(si, "web0"), machine(si, "gantry-proxy0")
    frozen = disks(vm.snapshot.currentSnapshot.config)[0].backing.fileName
    live = disks(vm.config)[0].backing.fileName
    task_fault(proxy.ReconfigVM_Task(attach_spec(frozen, "persistent")), vim.fault.FileLocked)
    task_fault(proxy.ReconfigVM_Task(attach_spec(live)), vim.fault.FileLocked)
    task_fault(
        proxy.ReconfigVM_Task(attach_spec("[vmfs0] no/no.vmdk")), vim.fault.FileNotFound)
    task_fault(proxy.ReconfigVM_Task(attach_spec(frozen, unit=7)), vim.fault.InvalidDeviceSpec)
    task_fault(
        proxy.ReconfigVM_Task(attach_spec(frozen, controller=200)), vim.fault.InvalidController)
    WaitForTask(proxy.ReconfigVM_Task(attach_spec(frozen)))
    (added,) = [d for d in disks(proxy.config) if d.backing.fileName == frozen]
    assert added.backing.diskMode == "independent_nonpersistent" and added.unitNumber == 1
    assert added.backing.uuid == disks(vm.config)[0].backing.uuid
    # The snapshot goes while its disk is attached: an orphan stays.
    snapshot = vm.snapshot.currentSnapshot
    WaitForTask(snapshot.RemoveSnapshot_Task(True, True))
    assert vm.snapshot is None and vm.runtime.consolidationNeeded
    raises(vmodl.fault.ManagedObjectNotFound, lambda: snapshot.config)
    gone = vim.vm.device.VirtualDeviceSpec(operation="remove", device=added)
    WaitForTask(proxy.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[gone])))
    assert len(disks(proxy.config)) == 1
    WaitForTask(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded
    assert disks(vm.config)[0].backing.fileName == frozen


def step_snapshot_trees(si):
    vm = machine(si, "db0")
    for name in ("a", "b", "c"):
        WaitForTask(vm.CreateSnapshotEx_Task(name, None, False, None))
    (a,) = vm.snapshot.rootSnapshotList
    b = a.childSnapshotList[0]
    assert (a.name, b.name, b.childSnapshotList[0].name) == ("a", "b", "c")
    nfs = disks(vm.config)[1]
    assert nfs.backing.deltaDiskFormat == "redoLogFormat", nfs.backing.deltaDiskFormat
    WaitForTask(b.snapshot.RemoveSnapshot_Task(False))
    (a,) = vm.snapshot.rootSnapshotList
    assert [child.name for child in a.childSnapshotList] == ["c"]
    WaitForTask(a.snapshot.RevertToSnapshot_Task())
    assert vm.snapshot.currentSnapshot == a.snapshot and vm.runtime.powerState == "poweredOff"
    WaitForTask(vm.PowerOnVM_Task())
    task_fault(vm.PowerOnVM_Task(), vim.fault.InvalidPowerState)
    a.snapshot.RenameSnapshot("z", None)
    assert vm.snapshot.rootSnapshotList[0].name == "z"
    WaitForTask(vm.RemoveAllSnapshots_Task(True))
    assert vm.snapshot is None and not vm.runtime.consolidationNeeded
    # Independent disks and raw devices in physical mode stay out of a snapshot.
    odd = machine(si, "odd0")
    WaitForTask(odd.CreateSnapshot_Task("s", "", False, False))
    files = [d.backing.fileName for d in disks(odd.config)]
    assert files == [
        "[vmfs0] odd0/odd0-000001.vmdk", "[vmfs0] odd0/odd0_1.vmdk", "[vmfs0] odd0/odd0_2.vmdk"]
    WaitForTask(odd.RemoveAllSnapshots_Task())


def step_hosts_have_their_own_references(si):
    host = connect(READY["hosts"][0]["url"])
    assert host.content.about.apiType == "HostAgent"
    names = {vm.name for vm in entities(host, vim.VirtualMachine)}
    assert "web0" in names and "web1" not in names, names
    here, there = machine(si, "web0"), machine(host, "web0")
    assert here._moId != there._moId and here.config.uuid == there.config.uuid
    WaitForTask(there.CreateSnapshot_Task("on the host", "", False, False))
    mine, theirs = here.snapshot.currentSnapshot, there.snapshot.currentSnapshot
    assert mine._moId != theirs._moId, (mine, theirs)
    raises(vmodl.fault.ManagedObjectNotFound, there.QueryChangedDiskAreas, mine, 2000, 0, "*")
    there.QueryChangedDiskAreas(theirs, 2000, 0, "*")
    WaitForTask(theirs.RemoveSnapshot_Task(False))
    assert here.snapshot is None
    Disconnect(host)


def fetch(si, url, headers=None, method="GET"):
    import urllib.request
    request = urllib.request.Request(url, headers=headers or {}, method=method)
    context = ssl._create_unverified_context()
    try:
        with urllib.request.urlopen(request, context=context) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), b""


def step_datastore_access(si):
    base = READY["url"][: -len("/sdk")]
    path = "/folder/web0/web0-flat.vmdk?dcPath=DC0&dsName=vmfs0"
    cookie = {"Cookie": si._stub.cookie.split(";")[0]}
    assert fetch(si, base + path)[0] == 401
    assert fetch(si, base + path, {"Cookie": "vmware_soap_session=rubbish"})[0] == 401
    # The running machine writes to it.
    assert fetch(si, base + path, cookie)[0] == 500
    vm = machine(si, "web0")
    WaitForTask(vm.CreateSnapshot_Task("s", "", False, False))
    status, headers, body = fetch(si, base + path, {**cookie, "Range": "bytes=4096-8191"})
    assert (status, len(body)) == (206, 4096), status
    assert headers["Content-Range"] == "bytes 4096-8191/%d" % (64 << 20), headers
    status, headers, body = fetch(si, base + path, cookie, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(64 << 20), b"")
    assert len(fetch(si, base + path, cookie)[2]) == 64 << 20
    assert fetch(si, base + path, {**cookie, "Range": "bytes=99999999999-"})[0] == 416
    status, _, body = fetch(si, base + "/folder/web0/web0.vmdk?dcPath=DC0&dsName=vmfs0", cookie)
    assert status == 200 and b"web0-flat.vmdk" in body
    wrong = "/folder/web0/web0.vmdk?dcPath=DC1&dsName=vmfs0", "/folder/../x?dsName=vmfs0"
    assert all(fetch(si, base + path, cookie)[0] == 404 for path in wrong)
    import base64
    basic = base64.b64encode(("%s:%s" % (READY["user"], PASSWORD)).encode()).decode()
    assert fetch(si, base + path, {"Authorization": "Basic " + basic}, "HEAD")[0] == 200
    spec = vim.SessionManager.HttpServiceRequestSpec(method="httpGet", url=base + path)
    ticket = si.content.sessionManager.AcquireGenericServiceTicket(spec)
    once = {"Cookie": "vmware_cgi_ticket=" + ticket.id, "Range": "bytes=0-9"}
    assert fetch(si, base + path, once)[0] == 206
    assert fetch(si, base + path, once)[0] == 401


def step_export_lease(si):
    vm = machine(si, "web0")
    raises(vim.fault.InvalidPowerState, vm.ExportVm)
    lease = vm.snapshot.currentSnapshot.ExportSnapshot()
    deadline = time.monotonic() + 5
    while lease.state == "initializing" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lease.state == "ready", lease.state
    (device,) = lease.info.deviceUrl
    assert lease.info.leaseTimeout == 300 and lease.info.totalDiskCapacityInKB == 64 << 10
    status, _, body = fetch(si, device.url.replace("*", "127.0.0.1"))
    assert status == 200 and body[:4] == b"KDMV", status
    lease.HttpNfcLeaseProgress(50)
    assert lease.transferProgress == 50
    raises(vmodl.fault.InvalidArgument, lease.HttpNfcLeaseProgress, 101)
    (entry,) = lease.HttpNfcLeaseGetManifest()
    import hashlib
    assert (entry.sha1, entry.size) == (hashlib.sha1(body).hexdigest(), len(body))
    lease.HttpNfcLeaseComplete()
    assert lease.state == "done"
    raises(vim.fault.InvalidState, lease.HttpNfcLeaseProgress, 60)
    assert fetch(si, device.url)[0] == 404
    WaitForTask(vm.RemoveAllSnapshots_Task())
    off = machine(si, "old0").ExportVm()
    off.HttpNfcLeaseAbort()
    assert off.state == "error" and off.error is not None


def step_guest_operations(si):
    guests = si.RetrieveContent().guestOperationsManager
    vm, files = machine(si, "web0"), guests.fileManager
    login = vim.vm.guest.NamePasswordAuthentication(username="operator", password="simulated")
    wrong = vim.vm.guest.NamePasswordAuthentication(username="operator", password="x")
    guests.authManager.ValidateCredentialsInGuest(vm, login)
    raises(vim.fault.InvalidGuestLogin, guests.authManager.ValidateCredentialsInGuest, vm, wrong)
    raises(vim.fault.InvalidPowerState, guests.authManager.ValidateCredentialsInGuest,
           machine(si, "old0"), login)
    folder = files.CreateTemporaryDirectoryInGuest(vm, login, "gantry", "")
    script = files.CreateTemporaryFileInGuest(vm, login, "pre", ".sh", folder)
    text = b"echo hello $1\nsleep 0.1\nexit 5\n"
    mode = vim.vm.guest.FileManager.PosixFileAttributes(permissions=0o700)
    url = files.InitiateFileTransferToGuest(vm, login, script, mode, len(text), True)
    assert url.startswith("https://*:"), url
    import urllib.request
    def transfer(url, body=None):
        request = urllib.request.Request(
            url.replace("*", "127.0.0.1"), data=body, method="PUT" if body else "GET")
        context = ssl._create_unverified_context()
        return urllib.request.urlopen(request, context=context).read()
    transfer(url, text)
    spec = vim.vm.guest.ProcessManager.ProgramSpec(
        programPath=script, arguments="there > %s/out 2>&1" % folder)
    pid = guests.processManager.StartProgramInGuest(vm, login, spec)
    state = lambda: guests.processManager.ListProcessesInGuest(vm, login, [pid])[0]
    assert state().endTime is None and state().exitCode is None
    deadline = time.monotonic() + 10
    while state().endTime is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state().exitCode == 5, state()
    out = files.InitiateFileTransferFromGuest(vm, login, folder + "/out")
    assert out.size == 12 and transfer(out.url) == b"hello there\n"
    listed = files.ListFilesInGuest(vm, login, folder)
    assert listed.remaining == 0 and len(listed.files) == 2, listed
    assert {f.attributes.permissions for f in listed.files} == {0o700, 0o644}
    hang = vim.vm.guest.ProcessManager.ProgramSpec(programPath="/bin/sh", arguments="-c hang")
    hanging = guests.processManager.StartProgramInGuest(vm, login, hang)
    guests.processManager.TerminateProcessInGuest(vm, login, hanging)
    raises(vim.fault.GuestProcessNotFound, guests.processManager.TerminateProcessInGuest,
           vm, login, hanging)
    files.DeleteFileInGuest(vm, login, script)
    raises(vim.fault.FileNotFound, files.InitiateFileTransferFromGuest, vm, login, script)
    files.DeleteDirectoryInGuest(vm, login, folder, True)
    drill({"kind": "tools-stop", "machine": "web0"})
    raises(vim.fault.GuestOperationsUnavailable, files.ListFilesInGuest, vm, login, "/tmp")
    drill({"kind": "tools-start", "machine": "web0"})


def step_machines_come_and_go(si):
    web = machine(si, "web1")
    folder, pool = web.parent, web.resourcePool
    device = vim.vm.device
    spec = vim.vm.ConfigSpec(
        name="made0", guestId="otherLinux64Guest", numCPUs=1, memoryMB=512, version="vmx-19",
        files=vim.vm.FileInfo(vmPathName="[vmfs0]"),
        deviceChange=[
            device.VirtualDeviceSpec(operation="add", device=device.ParaVirtualSCSIController(
                key=-101, busNumber=0, sharedBus="noSharing")),
            device.VirtualDeviceSpec(
                operation="add", fileOperation="create",
                device=device.VirtualDisk(
                    key=-102, controllerKey=-101, unitNumber=0, capacityInKB=8192,
                    backing=device.VirtualDisk.FlatVer2BackingInfo(
                        fileName="[vmfs0]", diskMode="persistent", thinProvisioned=True))),
        ])
    task = folder.CreateVM_Task(spec, pool)
    WaitForTask(task)
    vm = task.info.result
    (disk,) = disks(vm.config)
    assert disk.backing.fileName == "[vmfs0] made0/made0.vmdk", disk.backing.fileName
    assert disk.capacityInBytes == 8 << 20 and disk.backing.uuid
    disk.capacityInBytes = 16 << 20
    disk.capacityInKB = 16 << 10
    grown = device.VirtualDeviceSpec(operation="edit", device=disk)
    WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[grown])))
    assert disks(vm.config)[0].capacityInBytes == 16 << 20
    vm.UnregisterVM()
    assert "made0" not in [vm.name for vm in entities(si, vim.VirtualMachine)]
    path = "[vmfs0] made0/made0.vmx"
    task_fault(folder.RegisterVM_Task("[vmfs0] x/x.vmx", None, False, pool), vim.fault.FileNotFound)
    task = folder.RegisterVM_Task(path, "back0", False, pool)
    WaitForTask(task)
    vm = task.info.result
    assert vm.name == "back0"
    WaitForTask(vm.PowerOnVM_Task())
    task_fault(vm.Destroy_Task(), vim.fault.InvalidPowerState)
    WaitForTask(vm.PowerOffVM_Task())
    WaitForTask(vm.Destroy_Task())
    raises(vmodl.fault.ManagedObjectNotFound, lambda: vm.name)


def step_a_machine_from_uploaded_files(si):
    import urllib.request
    web = machine(si, "web1")
    si.content.fileManager.MakeDirectory("[vmfs0] again", None, True)
    cookie = si._stub.cookie.split(";")[0]
    def put(name, data):
        url = READY["url"][: -len("/sdk")] + "/folder/again/%s?dcPath=DC0&dsName=vmfs0" % name
        request = urllib.request.Request(url, data=data, method="PUT", headers={"Cookie": cookie})
        context = ssl._create_unverified_context()
        assert urllib.request.urlopen(request, context=context).status == 201
    put("again-flat.vmdk", b"restored" * (1 << 17))
    put("again.vmdk", b'''# Disk DescriptorFile
version=1
CID=00000001
parentCID=ffffffff
createType="vmfs"
RW 2048 VMFS "again-flat.vmdk"
''')
    put("again.vmx", b'''displayName = "again"
guestOS = "ubuntu-64"
scsi0.present = "TRUE"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "again.vmdk"
''')
    task = web.parent.RegisterVM_Task("[vmfs0] again/again.vmx", None, False, web.resourcePool)
    WaitForTask(task)
    vm = task.info.result
    assert vm.name == "again" and vm.config.guestId == "ubuntu64Guest"
    assert vm.config.files.vmPathName == "[vmfs0] again/again.vmx"
    (disk,) = disks(vm.config)
    assert disk.capacityInBytes == 1 << 20, disk
    WaitForTask(vm.PowerOnVM_Task())
    assert vm.guest.toolsRunningStatus == "guestToolsRunning"
    WaitForTask(vm.PowerOffVM_Task())
    WaitForTask(vm.Destroy_Task())


def step_managers(si):
    content = si.RetrieveContent()
    assert content.guestOperationsManager.authManager is not None
    assert content.licenseManager.licenses[0].editionKey == "eval"
    vm = machine(si, "web0")
    session = content.sessionManager.currentSession.key
    wanted = ["VirtualMachine.State.CreateSnapshot", "Datastore.Browse"]
    (found,) = content.authorizationManager.HasPrivilegeOnEntities([vm], session, wanted)
    assert found.entity == vm and all(p.isGranted for p in found.privAvailability)
    assert [p.privId for p in found.privAvailability] == wanted
    events = content.eventManager.QueryEvents(vim.event.EventFilterSpec())
    assert any(isinstance(event, vim.event.UserLoginSessionEvent) for event in events)
    by = vim.event.EventFilterSpec.ByEntity(entity=vm, recursion="self")
    events = content.eventManager.QueryEvents(vim.event.EventFilterSpec(entity=by))
    assert events and all(event.vm.vm == vm for event in events)
    field = content.customFieldsManager.AddCustomFieldDef("Tier", vim.VirtualMachine)
    vm.setCustomValue("Tier", "1")
    assert {v.key: v.value for v in vm.customValue}[field.key] == "1"
    content.fileManager.MakeDirectory("[vmfs0] folder/deep", None, True)
    raises(vim.fault.FileAlreadyExists, content.fileManager.MakeDirectory, "[vmfs0] folder")
    raises(vim.fault.InvalidDatastorePath, content.fileManager.MakeDirectory, "vmfs0/folder")
    manager = content.virtualDiskManager
    spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
        diskType="thin", adapterType="lsiLogic", capacityKb=1024)
    WaitForTask(manager.CreateVirtualDisk_Task("[nfs0] loose.vmdk", None, spec))
    assert manager.QueryVirtualDiskUuid("[nfs0] loose.vmdk")
    WaitForTask(manager.DeleteVirtualDisk_Task("[nfs0] loose.vmdk"))
    raises(vim.fault.FileNotFound, manager.QueryVirtualDiskUuid, "[nfs0] loose.vmdk")


def drill(*commands):
    body = json.dumps(list(commands)).encode()
    import urllib.request
    url = READY["url"][: -len("/sdk")] + "/gantry-sim/faults"
    request = urllib.request.Request(url, data=body, method="POST")
    with urllib.request.urlopen(request, context=ssl._create_unverified_context()) as answer:
        assert answer.status == 200


def step_drills_on_calls(si):
    vm = machine(si, "web0")
    on = lambda method, **more: {"method": method, "object": "web0", "count": 1, **more}
    drill({"kind": "method-fault", "fault": "TaskInProgress", "when": on("PowerOffVM_Task")})
    raises(vim.fault.TaskInProgress, vm.PowerOffVM_Task)
    drill({"kind": "task-fault", "fault": "FilesystemQuiesceFault", "message": "frozen",
           "when": on("CreateSnapshot_Task")})
    fault = task_fault(vm.CreateSnapshot_Task("s", "", False, True), vim.fault.FilesystemQuiesceFault)
    assert fault.msg == "frozen" and vm.snapshot is None
    # Done, although the task says that it failed: a stranded snapshot.
    drill({"kind": "task-fault", "fault": "SystemError", "done": True,
           "when": on("CreateSnapshot_Task")})
    task_fault(vm.CreateSnapshot_Task("s", "", False, False), vmodl.fault.SystemError)
    assert vm.snapshot is not None
    drill({"kind": "snapshot-stays", "machine": "web0", "times": 1})
    task_fault(vm.RemoveAllSnapshots_Task(), vim.fault.GenericVmConfigFault)
    assert vm.snapshot is not None
    drill({"kind": "stuck-consolidation", "machine": "web0", "times": 1})
    try:
        WaitForTask(vm.RemoveAllSnapshots_Task())
    except vim.fault.VimFault:
        pass
    assert vm.snapshot is None and vm.runtime.consolidationNeeded
    WaitForTask(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded
    drill({"kind": "slow-task", "delay_ms": 600, "when": on("CreateSnapshot_Task")})
    started = time.monotonic()
    WaitForTask(vm.CreateSnapshot_Task("s", "", False, False))
    assert time.monotonic() - started > 0.6
    WaitForTask(vm.RemoveAllSnapshots_Task())
    # The call is done, but its answer never comes.
    import http.client
    drill({"kind": "lose-answer", "when": on("CreateSnapshot_Task")})
    raises((http.client.HTTPException, OSError), vm.CreateSnapshot_Task, "lost", "", False, False)
    deadline = time.monotonic() + 5
    while vm.snapshot is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert vm.snapshot.rootSnapshotList[0].name == "lost"
    WaitForTask(vm.RemoveAllSnapshots_Task())
    drill({"kind": "drop", "when": on("CreateSnapshot_Task")})
    raises((http.client.HTTPException, OSError), vm.CreateSnapshot_Task, "lost", "", False, False)
    time.sleep(0.1)
    assert vm.snapshot is None


def step_drills_at_once(si):
    vm = machine(si, "web0")
    drill({"kind": "guest-start", "machine": "web0", "writes_per_second": 200})
    WaitForTask(vm.CreateSnapshot_Task("base", "", False, False))
    base = disks(vm.snapshot.currentSnapshot.config)[0]
    WaitForTask(vm.RemoveAllSnapshots_Task())
    time.sleep(0.3)
    WaitForTask(vm.CreateSnapshot_Task("next", "", False, False))
    snapshot = vm.snapshot.currentSnapshot
    query = lambda: vm.QueryChangedDiskAreas(snapshot, base.key, 0, base.backing.changeId)
    full = query().changedArea
    assert full, "the guest wrote"
    drill({"kind": "omit-changes", "machine": "web0", "probability": 1.0})
    assert not query().changedArea
    drill({"kind": "clear"}, {"kind": "guest-stop", "machine": "web0"})
    assert len(query().changedArea) == len(full)
    WaitForTask(vm.RemoveAllSnapshots_Task())
    drill({"kind": "cbt-reset", "machine": "web0"})
    WaitForTask(vm.CreateSnapshot_Task("after", "", False, False))
    snapshot = vm.snapshot.currentSnapshot
    raises(vmodl.fault.InvalidArgument, query)
    cookie = {"Cookie": si._stub.cookie.split(";")[0]}
    flat = READY["url"][: -len("/sdk")] + "/folder/web0/web0-flat.vmdk?dcPath=DC0&dsName=vmfs0"
    drill({"kind": "lock-file", "file": "[vmfs0] web0/web0-flat.vmdk"})
    assert fetch(si, flat, cookie, "HEAD")[0] == 500
    drill({"kind": "clear"}, {"kind": "lease-limit", "open": 0})
    raises(Exception, snapshot.ExportSnapshot)
    drill({"kind": "lease-limit", "open": 50}, {"kind": "datastore-loss", "datastore": "vmfs0"})
    assert fetch(si, flat, cookie, "HEAD")[0] == 404
    task_fault(vm.RemoveAllSnapshots_Task(), vim.fault.InaccessibleDatastore)
    drill({"kind": "datastore-return", "datastore": "vmfs0"})
    WaitForTask(vm.RemoveAllSnapshots_Task())


def step_host_loss(si):
    vm, name = machine(si, "web1"), "esx1.sim.example"
    assert vm.runtime.host.name == name
    drill({"kind": "host-loss", "host": name, "crash": True})
    assert vm.runtime.connectionState == "disconnected" and vm.runtime.powerState == "poweredOff"
    assert vm.runtime.host.runtime.connectionState == "notResponding"
    task_fault(vm.PowerOnVM_Task(), vmodl.fault.HostNotConnected)
    raises(Exception, connect, READY["hosts"][1]["url"])
    drill({"kind": "host-return", "host": name})
    WaitForTask(vm.PowerOnVM_Task())
    Disconnect(connect(READY["hosts"][1]["url"]))


def step_expiry(si):
    other = connect()
    drill({"kind": "expire-session", "when": {"method": "CurrentTime", "count": 1}})
    raises(vim.fault.NotAuthenticated, other.CurrentTime)
    other = connect()
    drill({"kind": "expire-sessions"})
    raises(vim.fault.NotAuthenticated, other.CurrentTime)
    global SI
    SI = connect()


def step_hostile_documents(si):
    import urllib.request

    def post(body):
        request = urllib.request.Request(READY["url"], data=body, method="POST")
        try:
            context = ssl._create_unverified_context()
            return urllib.request.urlopen(request, context=context, timeout=20).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 413  # cut off while it was still sending

    assert post(b"") == 500
    assert post(b"<a>" * 100000) == 500
    assert post(b"x" * (5 << 20)) == 413
    laughs = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>'
    assert post(laughs) == 500
    assert post(b"<e:Envelope xmlns:e='x'><e:Body><Login/></e:Body></e:Envelope>") == 500
    assert SI.CurrentTime()


def before_a_kill(si):
    vm, proxy = machine(si, "web0"), machine(si, "gantry-proxy0")
    WaitForTask(vm.CreateSnapshot_Task("left", "", False, False))
    frozen = disks(vm.snapshot.currentSnapshot.config)[0].backing.fileName
    WaitForTask(proxy.ReconfigVM_Task(attach_spec(frozen)))


def after_a_kill(si):
    vm = machine(si, "web0")
    assert vm.snapshot.currentSnapshot == vm.snapshot.rootSnapshotList[0].snapshot
    assert disks(vm.config)[0].backing.fileName == "[vmfs0] web0/web0-000001.vmdk"
    assert len(disks(machine(si, "gantry-proxy0").config)) == 1
    WaitForTask(vm.RemoveAllSnapshots_Task())
    assert vm.snapshot is None and not vm.runtime.consolidationNeeded
    assert disks(vm.config)[0].backing.fileName == "[vmfs0] web0/web0.vmdk"


def main():
    global SI
    SI = connect()
    prefix = sys.argv[2] if len(sys.argv) > 2 else "step_"
    steps = [(n, f) for n, f in globals().items() if n.startswith(prefix)]
    assert steps, prefix
    for name, step in steps:
        started = time.monotonic()
        step(SI)
        print("ok %s %.0f ms" % (name, (time.monotonic() - started) * 1000), flush=True)
    Disconnect(SI)


main()
