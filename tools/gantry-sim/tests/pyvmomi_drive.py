"""Drives gantry-sim with pyVmomi, the official client, and asserts every step.

In: the JSON line that gantry-sim prints, as the first argument. Out: one line a step; the first
step that goes wrong ends with its traceback. Steps are functions named step_*, run in order.
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


def main():
    si = connect()
    steps = [(n, f) for n, f in globals().items() if n.startswith("step_")]
    for name, step in steps:
        started = time.monotonic()
        step(si)
        print("ok %s %.0f ms" % (name, (time.monotonic() - started) * 1000), flush=True)
    Disconnect(si)


main()
