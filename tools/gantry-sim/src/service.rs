//! The managers that every endpoint has, and what it says about itself.
//!
//! In: the endpoint. Out: `ServiceInstance` with its content, and the managers' properties.

use crate::schema::{Ref, Value, list, object, reference};
use crate::sim::{Endpoint, Kind, Options};
use crate::site::{Site, Subject};

/// The API's version that both kinds of endpoint speak.
pub const API_VERSION: &str = "8.0.3.0";

/// The field of `ServiceContent`, the type, vCenter's id, the host's id.
const MANAGERS: &[(&str, &str, &str, &str)] = &[
    ("propertyCollector", "PropertyCollector", "propertyCollector", "ha-property-collector"),
    ("viewManager", "ViewManager", "ViewManager", "ViewManager"),
    ("setting", "OptionManager", "VpxSettings", "HostAgentSettings"),
    ("sessionManager", "SessionManager", "SessionManager", "ha-sessionmgr"),
    ("authorizationManager", "AuthorizationManager", "AuthorizationManager", "ha-authmgr"),
    ("eventManager", "EventManager", "EventManager", "ha-eventmgr"),
    ("taskManager", "TaskManager", "TaskManager", "ha-taskmgr"),
    ("extensionManager", "ExtensionManager", "ExtensionManager", ""),
    ("customFieldsManager", "CustomFieldsManager", "CustomFieldsManager", ""),
    ("licenseManager", "LicenseManager", "LicenseManager", "ha-license-manager"),
    ("searchIndex", "SearchIndex", "SearchIndex", "ha-searchindex"),
    ("fileManager", "FileManager", "FileManager", "ha-nfc-file-manager"),
    ("virtualDiskManager", "VirtualDiskManager", "virtualDiskManager", "ha-vdiskmanager"),
    ("ovfManager", "OvfManager", "OvfManager", "ha-ovf-manager"),
    (
        "guestOperationsManager",
        "GuestOperationsManager",
        "guestOperationsManager",
        "ha-guest-operations-manager",
    ),
];

/// Which managers a kind of endpoint has.
fn managers(kind: Kind) -> impl Iterator<Item = (&'static str, Ref)> {
    MANAGERS.iter().filter_map(move |(field, ty, center, host)| {
        let id = if kind == Kind::VCenter { center } else { host };
        (!id.is_empty()).then(|| (*field, reference(ty, *id)))
    })
}

/// A manager by its field of `ServiceContent`.
#[must_use]
pub fn manager(kind: Kind, field: &str) -> Option<Ref> {
    managers(kind).find(|(name, _)| *name == field).map(|(_, found)| found)
}

/// `AboutInfo`.
#[must_use]
pub fn about(site: &Site, kind: Kind) -> Value {
    let (name, product, api, os) = match kind {
        Kind::VCenter => ("VMware vCenter Server", "vpx", "VirtualCenter", "linux-x64"),
        Kind::Host(_) => ("VMware ESXi", "embeddedEsx", "HostAgent", "vmnix-x86"),
    };
    let instance = (kind == Kind::VCenter).then_some(site.instance_uuid.as_str());
    object(
        "AboutInfo",
        [
            ("name", name.into()),
            (
                "fullName",
                format!("{name} {} build-{} (simulated)", site.version, site.build).into(),
            ),
            ("vendor", "VMware, Inc.".into()),
            ("version", (&site.version).into()),
            ("build", (&site.build).into()),
            ("localeVersion", "INTL".into()),
            ("localeBuild", "000".into()),
            ("osType", os.into()),
            ("productLineId", product.into()),
            ("apiType", api.into()),
            ("apiVersion", API_VERSION.into()),
            ("instanceUuid", instance.into()),
            ("licenseProductName", format!("{name} (simulated)").into()),
            ("licenseProductVersion", "8.0".into()),
        ],
    )
}

/// Puts the managers into the endpoint's model.
pub fn build(endpoint: &mut Endpoint, site: &Site, options: &Options) {
    let kind = endpoint.kind;
    let root = if kind == Kind::VCenter { "group-d1" } else { "ha-folder-root" };
    let mut content =
        vec![("rootFolder", reference("Folder", root).into()), ("about", about(site, kind))];
    for (field, manager) in managers(kind) {
        endpoint.model.add(&manager);
        content.push((field, manager.into()));
    }
    let instance = reference("ServiceInstance", "ServiceInstance");
    endpoint.model.add(&instance);
    endpoint.model.set(&instance, "content", object("ServiceContent", content));
    endpoint.model.set(&instance, "serverClock", site.started);
    fill(endpoint, site, options);
}

fn fill(endpoint: &mut Endpoint, site: &Site, options: &Options) {
    let kind = endpoint.kind;
    if let Some(sessions) = manager(kind, "sessionManager") {
        endpoint.model.set(&sessions, "defaultLocale", "en");
        endpoint.model.set(&sessions, "messageLocaleList", list(["en"]));
        endpoint.model.set(&sessions, "supportedLocaleList", list(["en"]));
        endpoint.model.set(&sessions, "message", "");
    }
    if let Some(guests) = manager(kind, "guestOperationsManager") {
        let (auth, file, process) = ("GuestAuthManager", "GuestFileManager", "GuestProcessManager");
        for (field, ty) in
            [("authManager", auth), ("fileManager", file), ("processManager", process)]
        {
            let prefix =
                if kind == Kind::VCenter { "guestOperations" } else { "ha-guest-operations-" };
            let child = reference(ty, format!("{prefix}{ty}"));
            endpoint.model.add(&child);
            endpoint.model.set(&guests, field, &child);
        }
    }
    if let Some(licenses) = manager(kind, "licenseManager") {
        let license = object(
            "LicenseManagerLicenseInfo",
            [
                ("licenseKey", "00000-00000-00000-00000-00000".into()),
                ("editionKey", "eval".into()),
                ("name", "Product Evaluation (simulated)".into()),
                ("total", 0.into()),
                ("used", 0.into()),
                ("costUnit", "cpuPackage".into()),
            ],
        );
        endpoint.model.set(&licenses, "licenses", list([license]));
    }
    if let Some(roles) = manager(kind, "authorizationManager") {
        let role = object(
            "AuthorizationRole",
            [
                ("roleId", (-1).into()),
                ("system", true.into()),
                ("name", "Admin".into()),
                (
                    "info",
                    object(
                        "Description",
                        [("label", "Administrator".into()), ("summary", (&options.user).into())],
                    ),
                ),
            ],
        );
        endpoint.model.set(&roles, "roleList", list([role]));
    }
    fields(endpoint, site);
}

/// The definitions of custom attributes.
pub fn fields(endpoint: &mut Endpoint, site: &Site) {
    let Some(manager) = manager(endpoint.kind, "customFieldsManager") else { return };
    let fields = site.fields.iter().map(|field| {
        object(
            "CustomFieldDef",
            [
                ("key", field.key.into()),
                ("name", (&field.name).into()),
                ("type", "string".into()),
                ("managedObjectType", "VirtualMachine".into()),
            ],
        )
    });
    endpoint.model.set(&manager, "field", list(fields.collect::<Vec<_>>()));
}

/// The root folder's thing, whose object every endpoint has.
pub const ROOT: Subject = Subject::Root;
