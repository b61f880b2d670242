"""Writes types.txt, the table of the vSphere types that the simulator speaks.

In: pyVmomi (pip install pyvmomi==9.1.1.0), whose type tables hold every type, field and method of
the API in wire order, and the lists below. Out, on standard output, one line each:

    data NAME BASE          a data object; its own fields follow, in wire order
    enum NAME VALUE...
    managed NAME BASE       a managed object; its own properties follow
    method NAME RETURN      of the managed object above it; its parameters follow
     name type              a field, property or parameter; ? optional, [] array, @ reference

Run: python generate.py > types.txt
"""

import sys

from pyVmomi import VmomiSupport as V

MANAGED = """
ServiceInstance SessionManager PropertyCollector PropertyFilter ViewManager View ManagedObjectView
ContainerView ListView SearchIndex Folder Datacenter ComputeResource ClusterComputeResource HostSystem
ResourcePool Datastore Network DistributedVirtualPortgroup DistributedVirtualSwitch VirtualMachine VirtualMachineSnapshot Task TaskManager
EventManager CustomFieldsManager AuthorizationManager LicenseManager GuestOperationsManager
GuestAuthManager GuestFileManager GuestProcessManager HttpNfcLease FileManager VirtualDiskManager
OptionManager ExtensionManager HostDatastoreSystem HostDatastoreBrowser EventHistoryCollector
EnvironmentBrowser ServiceManager OvfManager
""".split()

# Methods of those objects that stay out: the rest of a type would be dead weight.
METHODS = """
RetrieveServiceContent CurrentTime Login Logout SessionIsActive AcquireGenericServiceTicket
AcquireCloneTicket CloneSession TerminateSession AcquireLocalTicket
RetrieveProperties RetrievePropertiesEx ContinueRetrievePropertiesEx CancelRetrievePropertiesEx
CreateFilter DestroyPropertyFilter CheckForUpdates WaitForUpdates WaitForUpdatesEx
CancelWaitForUpdates CreatePropertyCollector DestroyPropertyCollector
CreateContainerView CreateListView DestroyView ModifyListView ResetListView
FindByUuid FindAllByUuid FindByInventoryPath FindByDnsName FindByIp FindChild FindByDatastorePath
CreateFolder CreateVM_Task RegisterVM_Task Destroy_Task Rename_Task UnregisterVM Reload
PowerOnVM_Task PowerOffVM_Task SuspendVM_Task ReconfigVM_Task CreateSnapshot_Task
CreateSnapshotEx_Task RemoveSnapshot_Task RemoveAllSnapshots_Task RevertToSnapshot_Task
RevertToCurrentSnapshot_Task RenameSnapshot ConsolidateVMDisks_Task QueryChangedDiskAreas
MarkAsTemplate MarkAsVirtualMachine ExportVm ExportSnapshot
HttpNfcLeaseProgress HttpNfcLeaseComplete HttpNfcLeaseAbort HttpNfcLeaseGetManifest
CancelTask SetTaskState UpdateProgress CreateTask QueryEvents LogUserEvent
AddCustomFieldDef SetField RemoveCustomFieldDef setCustomValue
HasPrivilegeOnEntities HasPrivilegeOnEntity HasUserPrivilegeOnEntities FetchUserPrivilegeOnEntities
RetrieveRolePermissions RetrieveEntityPermissions RetrieveAllPermissions
QueryOptions DecodeLicense
CreateVirtualDisk_Task DeleteVirtualDisk_Task QueryVirtualDiskUuid MakeDirectory
DeleteDatastoreFile_Task ValidateCredentialsInGuest AcquireCredentialsInGuest
ReleaseCredentialsInGuest ListProcessesInGuest StartProgramInGuest
InitiateFileTransferFromGuest InitiateFileTransferToGuest CreateTemporaryFileInGuest
CreateTemporaryDirectoryInGuest DeleteFileInGuest DeleteDirectoryInGuest MakeDirectoryInGuest
ListFilesInGuest TerminateProcessInGuest CreateCollectorForEvents ReadNextEvents
ReadPreviousEvents ResetCollector RewindCollector DestroyCollector SetCollectorPageSize
RefreshDatastore
RefreshDatastoreStorageInfo QueryDatastorePerformanceSummary FindExtension
""".split()

DATA = """
ServiceContent AboutInfo UserSession SessionManagerGenericServiceTicket
SessionManagerServiceRequestSpec SessionManagerHttpServiceRequestSpec SessionManagerLocalTicket
PropertyFilterSpec PropertySpec ObjectSpec SelectionSpec TraversalSpec RetrieveOptions
RetrieveResult ObjectContent DynamicProperty MissingProperty UpdateSet PropertyFilterUpdate
ObjectUpdate PropertyChange WaitOptions MissingObject
LocalizedMethodFault MethodFault RuntimeFault TaskInfo TaskReason TaskReasonUser LocalizableMessage
KeyAnyValue
VirtualMachineConfigInfo VirtualMachineFileInfo VirtualMachineConfigInfoDatastoreUrlPair ToolsConfigInfo
VirtualMachineFlagInfo VirtualMachineDefaultPowerOpInfo VirtualMachineBootOptions VirtualHardware
VirtualDevice VirtualDisk VirtualController VirtualSCSIController ParaVirtualSCSIController
VirtualLsiLogicController VirtualLsiLogicSASController VirtualSATAController VirtualAHCIController VirtualNVMEController
VirtualIDEController VirtualPCIController VirtualCdrom VirtualEthernetCard VirtualVmxnet VirtualVmxnet3 VirtualE1000 VirtualE1000e
VirtualTPM VirtualMachineVideoCard VirtualMachineVMCIDevice
VirtualDeviceBackingInfo VirtualDeviceFileBackingInfo VirtualDeviceConnectInfo
VirtualDeviceDeviceBackingInfo VirtualEthernetCardNetworkBackingInfo
VirtualEthernetCardDistributedVirtualPortBackingInfo DistributedVirtualSwitchPortConnection
VirtualDiskFlatVer2BackingInfo VirtualDiskSeSparseBackingInfo VirtualDiskSparseVer2BackingInfo
VirtualDiskRawDiskMappingVer1BackingInfo VirtualCdromIsoBackingInfo VirtualDeviceRemoteDeviceBackingInfo VirtualCdromRemotePassthroughBackingInfo
VirtualMachineConfigSpec VirtualDeviceConfigSpec VirtualMachineProfileSpec OptionValue
VirtualMachineRuntimeInfo VirtualMachineSnapshotInfo VirtualMachineSnapshotTree
VirtualMachineCapability VirtualMachineSummary VirtualMachineConfigSummary VirtualMachineGuestSummary
VirtualMachineStorageSummary VirtualMachineQuickStats GuestInfo GuestNicInfo GuestDiskInfo
VirtualMachineFileLayout VirtualMachineFileLayoutEx VirtualMachineFileLayoutExFileInfo
VirtualMachineFileLayoutExDiskLayout VirtualMachineFileLayoutExDiskUnit
VirtualMachineFileLayoutExSnapshotLayout VirtualMachineStorageInfo
DiskChangeInfo DiskChangeExtent VirtualMachineGuestQuiesceSpec VirtualMachineWindowsQuiesceSpec
HttpNfcLeaseInfo HttpNfcLeaseDeviceUrl HttpNfcLeaseDatastoreLeaseInfo HttpNfcLeaseHostInfo
HttpNfcLeaseManifestEntry HttpNfcLeaseCapabilities
HostListSummary HostHardwareSummary HostConfigSummary HostRuntimeInfo HostConnectInfo
DatastoreSummary DatastoreInfo VmfsDatastoreInfo HostVmfsVolume HostFileSystemVolume NasDatastoreInfo HostNasVolume LocalDatastoreInfo VsanDatastoreInfo
DatastoreCapability DatastoreHostMount HostMountInfo ResourcePoolSummary ResourceAllocationInfo SharesInfo
ComputeResourceSummary ClusterComputeResourceSummary NetworkSummary
CustomFieldDef CustomFieldValue CustomFieldStringValue Tag Event EventEx EventFilterSpec EntityEventArgument
ManagedEntityEventArgument VmEventArgument HostEventArgument DatacenterEventArgument
VmEvent VmReconfiguredEvent VmPoweredOnEvent VmPoweredOffEvent VmCreatedEvent VmRemovedEvent VmRegisteredEvent
UserLoginSessionEvent UserLogoutSessionEvent TaskEvent SessionEvent VmBeingCreatedEvent VmFailedToPowerOnEvent
FolderEventArgument ResourcePoolEventArgument
EventFilterSpecByEntity EventFilterSpecByTime EventFilterSpecByUsername
EntityPrivilege PrivilegeAvailability UserPrivilegeResult Permission AuthorizationRole AuthorizationPrivilege
LicenseManagerLicenseInfo
GuestAuthentication NamePasswordAuthentication FileTransferInformation GuestProgramSpec GuestProcessInfo
GuestFileAttributes GuestPosixFileAttributes GuestWindowsFileAttributes GuestListFileInfo GuestFileInfo
GuestPermissionDenied GuestProcessNotFound
VirtualDiskSpec FileBackedVirtualDiskSpec Description Extension
ResourceConfigSpec
HostSystemIdentificationInfo 
ManagedByInfo VirtualMachineAffinityInfo LatencySensitivity
VmConfigInfo VAppConfigInfo 
CryptoKeyId KeyProviderId
VirtualDiskId ComplianceProfile
VirtualDiskVFlashCacheConfigInfo StorageIOAllocationInfo ID HostListSummaryQuickStats
ResourcePoolRuntimeInfo ResourcePoolResourceUsage HostScsiDiskPartition VirtualMachineUsageOnDatastore
""".split()

FAULTS = """
NotAuthenticated InvalidLogin NoPermission ManagedObjectNotFound InvalidRequest InvalidArgument InvalidType
MethodNotFound NotSupported NotImplemented RequestCanceled SystemError SecurityError UnexpectedFault
HostCommunication HostNotConnected HostNotReachable InvalidProperty InvalidCollectorVersion
TaskInProgress InvalidState InvalidPowerState FileFault FileNotFound FileLocked CannotAccessFile
FileAlreadyExists NoDiskSpace InvalidDatastore InvalidDatastorePath InaccessibleDatastore DuplicateName InvalidName
SnapshotFault SnapshotDisabled SnapshotLocked SnapshotNoChange SnapshotIncompatibleDeviceInVm
MultipleSnapshotsNotSupported ApplicationQuiesceFault FilesystemQuiesceFault TooManySnapshotLevels
SnapshotCopyNotSupported GenericVmConfigFault VmConfigFault InvalidDeviceSpec InvalidDeviceBacking
DeviceNotFound DeviceUnsupportedForVmPlatform InvalidController
NotEnoughLicenses RestrictedVersion LicenseRestricted ConcurrentAccess Timedout TooManyConcurrentNativeClones OutOfBounds NotFound
AlreadyExists VimFault ResourceInUse InsufficientResourcesFault InvalidFolder InvalidDiskFormat
InvalidGuestLogin GuestOperationsFault GuestOperationsUnavailable ToolsUnavailable InvalidLocale
TooManyGuestLogons LimitExceeded DiskNotSupported InvalidVmConfig MissingController
HostConnectFault InvalidPrivilege AlreadyBeingManaged CannotAccessVmComponent CannotAccessVmDevice CannotAccessVmDisk
TooManyHosts NetworkCopyFault VmLimitLicense InvalidLogin UserNotFound
""".split()

PRIMITIVE = {
    "PropertyPath": "string", "TypeName": "string", "MethodName": "string", "anyURI": "string",
    "ManagedMethod": "string", "type": "string",
}

missing = []


def find(name):
    try:
        return V.GetWsdlType("urn:vim25", name)
    except KeyError:
        try:
            return V.GuessWsdlType(name)
        except KeyError:
            missing.append(name)
            return None


def kind(type_name, flags):
    """The type's notation: what it holds, whether it may be absent, whether it repeats."""
    optional = "?" if flags & V.F_OPTIONAL else ""
    if type_name == "void":
        return "-"
    array = "[]" if type_name.endswith("[]") else ""
    base = type_name[:-2] if array else type_name
    if base in PRIMITIVE:
        return PRIMITIVE[base] + array + optional
    cls = V.GetVmodlType(base)
    if flags & V.F_LINK:
        return "string" + array + optional
    name = V.GetWsdlName(cls)
    if name == "MethodFault":
        name = "LocalizedMethodFault"  # what travels wherever a field is a fault
    if isinstance(cls, type) and issubclass(cls, V.ManagedObject):
        name = "@" + name
    return PRIMITIVE.get(name, name) + array + optional


data, enums, managed = {}, {}, []


def want(name):
    cls = find(name)
    if cls is None:
        return
    if issubclass(cls, V.Enum):
        missing.append(name + " (an enumeration)")
        return
    name = V.GetWsdlName(cls)
    if name in data:
        return
    base = cls.__mro__[1]
    base_name = "-"
    if hasattr(base, "_version") and V.GetWsdlName(base) not in ("DynamicData", "DataObject"):
        base_name = V.GetWsdlName(base)
        want(base_name)
    fields = [(p.name, p) for p in cls._GetPropertyList(False)] if name != "DynamicData" else []
    data[name] = (base_name, [(n, kind(p.typeName, p.flags)) for n, p in own(cls, fields)])
    for _, p in own(cls, fields):
        note_enum(p.typeName)


# Never on the wire in our versions, or (msg) only as the SOAP fault's text.
HIDDEN = ("dynamicType", "dynamicProperty", "msg")


def own(cls, fields):
    return [(n, LAZY(cls, n)) for n, _ in fields if n not in HIDDEN]


class LAZY:
    """One field's name, type name and flags, read without resolving the type."""

    def __init__(self, cls, name):
        info = cls._propInfo[name]
        info.name
        self.typeName = info.__dict__.get("typeName") or type_name(info)
        self.flags = info.flags


def type_name(info):
    return info.type.__name__


def note_enum(name):
    base = name[:-2] if name.endswith("[]") else name
    if base in PRIMITIVE or base == "void":
        return
    cls = V.GetVmodlType(base)
    if isinstance(cls, type) and issubclass(cls, V.Enum):
        values = [v for v in cls.values if "unknown_" not in v] if hasattr(cls, "values") else []
        enums[V.GetWsdlName(cls)] = values


def managed_type(name):
    cls = find(name)
    if cls is None or any(entry[0] == V.GetWsdlName(cls) for entry in managed):
        return
    base = cls.__mro__[1]
    base_name = "-"
    if base is not V.ManagedObject:
        managed_type(V.GetWsdlName(base))
        base_name = V.GetWsdlName(base)
    properties = []
    for info in cls._propInfo.values():
        info.name
        entry = LAZY(cls, info.name)
        properties.append((info.name, kind(entry.typeName, entry.flags)))
        note_enum(entry.typeName)
    methods = []
    for info in cls._methodInfo.values():
        wsdl = info.wsdlName
        if wsdl not in METHODS:
            continue
        params = []
        for p in info.params:
            p.name
            params.append((p.name, kind(p.typeName, p.flags)))
            note_enum(p.typeName)
        methods.append((wsdl, kind(info.resultName, info.resultFlags), params))
    managed.append((V.GetWsdlName(cls), base_name, properties, methods))


for wanted in DATA + FAULTS:
    want(wanted)
for wanted in MANAGED:
    managed_type(wanted)

print("# Written by generate.py from pyVmomi 9.1.1.0 (Apache-2.0). Do not edit: see generate.py.")
for name in sorted(enums):
    print("enum", name, *enums[name])
for name in sorted(data):
    base, fields = data[name]
    print("data", name, base)
    for field, notation in fields:
        bare = (name, field) == ("LocalizedMethodFault", "fault")
        print("", field, "MethodFault" if bare else notation)
for name, base, properties, methods in managed:
    print("managed", name, base)
    for field, notation in properties:
        print("", field, notation)
    for method, returned, params in methods:
        print("method", method, returned)
        for field, notation in params:
            print("", field, notation)
if missing:
    print("not in pyVmomi:", *sorted(set(missing)), file=sys.stderr)
