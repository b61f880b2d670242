//! Finds objects: container views, and look-up by UUID.

use super::error::VimError;
use super::moref::MoRef;
use super::retry::Repeat;
use super::session::VCenter;

impl VCenter {
    /// A view of all objects of these types below a container (the root folder without one). It
    /// ends with the session.
    ///
    /// # Errors
    /// As any call.
    pub async fn container_view(
        &self,
        container: Option<&MoRef>,
        kinds: &[&str],
    ) -> Result<MoRef, VimError> {
        let content = self.content().await?;
        let container = container.unwrap_or(&content.root_folder);
        let method = "CreateContainerView";
        // A second view does no harm.
        let answer = self
            .call(method, &content.view_manager, "inventory", Repeat::Harmless, |w| {
                w.moref("container", container);
                for kind in kinds {
                    w.text("type", kind);
                }
                w.value("recursive", true);
            })
            .await?;
        let view = answer.moref_at("returnval");
        view.ok_or_else(|| self.unexpected(method, "inventory", "no view"))
    }

    /// Ends a view.
    ///
    /// # Errors
    /// As any call; one that is gone already is not an error.
    pub async fn destroy_view(&self, view: &MoRef) -> Result<(), VimError> {
        match self.call("DestroyView", view, "inventory", Repeat::Harmless, |_| {}).await {
            Err(error) if !error.is_gone() => Err(error),
            _ => Ok(()),
        }
    }

    /// The virtual machine with this instance UUID (or BIOS UUID), if there is one.
    ///
    /// # Errors
    /// As any call.
    pub async fn find_by_uuid(
        &self,
        uuid: &str,
        instance_uuid: bool,
    ) -> Result<Option<MoRef>, VimError> {
        let index = self.content().await?.search_index.clone();
        let answer = self
            .call("FindByUuid", &index, uuid, Repeat::Harmless, |w| {
                w.text("uuid", uuid).value("vmSearch", true).value("instanceUuid", instance_uuid);
            })
            .await?;
        Ok(answer.moref_at("returnval"))
    }
}
