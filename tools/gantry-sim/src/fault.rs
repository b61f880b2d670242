//! Faults: what a method answers when it refuses or fails.
//!
//! In: a type of the table, a text, its fields. Out: the SOAP fault's detail, or the error of a
//! task.

use crate::schema::{Object, Value, object, schema};

/// A fault.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// What a person reads.
    pub message: String,
    /// The typed detail.
    pub detail: Object,
}

impl Fault {
    /// A fault of that type.
    ///
    /// # Panics
    /// When the table lacks the type: a mistake in the simulator.
    #[must_use]
    pub fn new(ty: &str, message: impl Into<String>) -> Self {
        Self { message: message.into(), detail: Object::new(ty) }
    }

    /// The same with a field of its detail set.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.detail.set(field, value);
        self
    }

    /// Whether clients' requests may name a fault type (rules of the drill tool).
    #[must_use]
    pub fn is_known(ty: &str) -> bool {
        schema().data(ty).is_some() && schema().is_a(ty, "MethodFault")
    }

    /// As a field's value: `LocalizedMethodFault`.
    #[must_use]
    pub fn localized(&self) -> Value {
        object(
            "LocalizedMethodFault",
            [
                ("fault", self.detail.clone().into()),
                ("localizedMessage", self.message.as_str().into()),
            ],
        )
    }

    /// The session is not logged in, or has expired.
    #[must_use]
    pub fn not_authenticated(object: &crate::schema::Ref) -> Self {
        Self::new("NotAuthenticated", "The session is not authenticated.")
            .with("object", object)
            .with("privilegeId", "System.View")
    }

    /// The object is not there, or no more.
    #[must_use]
    pub fn no_object(object: &crate::schema::Ref) -> Self {
        let message = format!(
            "The object 'vim.{}:{}' has already been deleted or has not been completely created",
            object.ty, object.id
        );
        Self::new("ManagedObjectNotFound", message).with("obj", object)
    }

    /// A parameter is wrong.
    #[must_use]
    pub fn invalid_argument(parameter: &str) -> Self {
        Self::new("InvalidArgument", format!("A specified parameter was not correct: {parameter}"))
            .with("invalidProperty", parameter)
    }

    /// The request itself is wrong.
    #[must_use]
    pub fn invalid_request(what: impl Into<String>) -> Self {
        Self::new("InvalidRequest", format!("The request is invalid: {}", what.into()))
    }

    /// The simulator itself failed: a defect of it.
    #[must_use]
    pub fn system_error() -> Self {
        let message = "A general system error occurred: the simulator failed.";
        Self::new("SystemError", message).with("reason", message)
    }

    /// The operation exists but not for this.
    #[must_use]
    pub fn not_supported(what: impl Into<String>) -> Self {
        Self::new("NotSupported", what)
    }
}
