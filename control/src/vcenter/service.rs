//! What an endpoint is and offers: ServiceContent, and tickets of its session manager.

use gantry_http::Thumbprint;

use super::error::VimError;
use super::moref::MoRef;
use super::retry::Repeat;
use super::session::VCenter;
use super::xml::Element;
use gantry_common::secret::Secret;

/// The singletons of an endpoint, and what it is. A standalone ESXi lacks some of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceContent {
    /// Product name and build, for people.
    pub full_name: String,
    /// Product version, such as `8.0.2`.
    pub version: String,
    /// Build number.
    pub build: String,
    /// API version, such as `8.0.2.0`.
    pub api_version: String,
    /// Whether it is a vCenter (`VirtualCenter`), as opposed to an ESXi host (`HostAgent`).
    pub is_vcenter: bool,
    /// The instance's UUID; an ESXi host has none.
    pub instance_uuid: Option<String>,
    /// The root of the inventory.
    pub root_folder: MoRef,
    /// Of the session.
    pub session_manager: MoRef,
    /// Of the session.
    pub property_collector: MoRef,
    /// For container views.
    pub view_manager: MoRef,
    /// For look-ups by UUID.
    pub search_index: MoRef,
    /// For privileges.
    pub authorization_manager: MoRef,
    /// Names of custom attributes; absent on ESXi.
    pub custom_fields_manager: Option<MoRef>,
    /// For files and folders of datastores.
    pub file_manager: Option<MoRef>,
    /// For what is done inside guests.
    pub guest_operations_manager: Option<MoRef>,
    /// For events of the past.
    pub event_manager: Option<MoRef>,
}

impl ServiceContent {
    /// Major and minor API version, such as (8, 0); (0, 0) if it says none.
    pub fn api(&self) -> (u32, u32) {
        let mut parts = self.api_version.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    pub(super) fn parse(element: &Element) -> Result<ServiceContent, String> {
        let moref = |name: &str| {
            element.moref_at(name).ok_or_else(|| format!("the service content has no {name}"))
        };
        let text = |path: &str| super::soap::quoted(element.text_at(path).unwrap_or_default());
        Ok(ServiceContent {
            full_name: text("about.fullName"),
            version: text("about.version"),
            build: text("about.build"),
            api_version: text("about.apiVersion"),
            is_vcenter: element.text_at("about.apiType") == Some("VirtualCenter"),
            instance_uuid: element.text_at("about.instanceUuid").map(super::soap::quoted),
            root_folder: moref("rootFolder")?,
            session_manager: moref("sessionManager")?,
            property_collector: moref("propertyCollector")?,
            view_manager: moref("viewManager")?,
            search_index: moref("searchIndex")?,
            authorization_manager: moref("authorizationManager")?,
            custom_fields_manager: element.moref_at("customFieldsManager"),
            file_manager: element.moref_at("fileManager"),
            guest_operations_manager: element.moref_at("guestOperationsManager"),
            event_manager: element.moref_at("eventManager"),
        })
    }
}

/// A ticket that stands for the session on one URL and one method, such as a datastore read.
#[derive(Debug, Clone)]
pub struct ServiceTicket {
    /// Its value, sent as the cookie `vmware_cgi_ticket`.
    pub id: Secret,
    /// The host that it is for, if the endpoint says so.
    pub host_name: Option<String>,
    /// The certificate of that host, if the endpoint says so and in SHA-256.
    pub thumbprint: Option<Thumbprint>,
}

impl VCenter {
    /// Whether the user has each of the privileges on an object; in the order of `privileges`.
    ///
    /// # Errors
    /// As any call; a standalone ESXi before 5.1 lacks it.
    pub async fn has_privileges(
        &self,
        object: &MoRef,
        privileges: &[&str],
    ) -> Result<Vec<bool>, VimError> {
        let content = self.content().await?;
        let session = self.session_key().await?;
        let manager = &content.authorization_manager;
        let what = object.to_string();
        let answer = self
            .call("HasPrivilegeOnEntities", manager, &what, Repeat::Harmless, |w| {
                w.moref("entity", object).text("sessionId", &session);
                for privilege in privileges {
                    w.text("privId", privilege);
                }
            })
            .await?;
        let granted: Vec<(&str, bool)> = answer
            .all("returnval")
            .flat_map(|entity| entity.all("privAvailability"))
            .filter_map(|one| Some((one.text_at("privId")?, one.bool_at("isGranted")?)))
            .collect();
        let has = |privilege: &&str| granted.contains(&(*privilege, true));
        Ok(privileges.iter().map(has).collect())
    }

    /// A ticket for one HTTP method (`httpGet`, `httpPut` …) on one URL of this endpoint.
    ///
    /// # Errors
    /// As any call.
    pub async fn service_ticket(&self, url: &str, method: &str) -> Result<ServiceTicket, VimError> {
        let content = self.content().await?;
        let manager = &content.session_manager;
        let name = "AcquireGenericServiceTicket";
        let answer = self
            .call(name, manager, url, Repeat::Harmless, |w| {
                w.typed("spec", "SessionManagerHttpServiceRequestSpec", |w| {
                    w.text("method", method).text("url", url);
                });
            })
            .await?;
        let id = answer.text_at("returnval.id");
        let id = id.ok_or_else(|| self.unexpected(name, url, "a ticket without an id"))?;
        Ok(ServiceTicket {
            id: Secret::new(id),
            host_name: answer.text_at("returnval.hostName").map(super::soap::quoted),
            thumbprint: answer.text_at("returnval.sslThumbprint").and_then(|t| t.parse().ok()),
        })
    }

    /// The server's clock, as it prints it; the least of all calls.
    ///
    /// # Errors
    /// As any call.
    pub async fn current_time(&self) -> Result<String, VimError> {
        let instance = MoRef::new("ServiceInstance", "ServiceInstance");
        let answer =
            self.call("CurrentTime", &instance, "session", Repeat::Harmless, |_| {}).await?;
        Ok(super::soap::quoted(answer.text_at("returnval").unwrap_or_default()))
    }
}
