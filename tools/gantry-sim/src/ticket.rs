//! One-time tickets for single HTTP requests.
//!
//! In: the method and address that a ticket is for. Out: whether a ticket opens a request, once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a ticket waits for its request.
const LIFE: Duration = Duration::from_secs(60);
/// Tickets at a time.
const TICKETS_MAX: usize = 10_000;

/// The tickets of an endpoint.
#[derive(Debug, Default)]
pub struct Tickets {
    open: HashMap<String, Ticket>,
}

#[derive(Debug)]
struct Ticket {
    method: String,
    target: String,
    issued: Instant,
}

impl Tickets {
    /// A new ticket's id. The method is vSphere's word (`httpGet`), the address any form of it.
    pub fn issue(&mut self, method: &str, address: &str) -> String {
        self.open.retain(|_, ticket| ticket.issued.elapsed() < LIFE);
        if self.open.len() >= TICKETS_MAX {
            self.open.clear();
        }
        let id = crate::session::secret(16);
        let (method, target) = (method.to_ascii_lowercase(), target(address).to_owned());
        self.open.insert(id.clone(), Ticket { method, target, issued: Instant::now() });
        id
    }

    /// Whether a ticket opens this request; it is used up by it.
    pub fn redeem(&mut self, id: &str, method: &str, address: &str) -> bool {
        let Some(ticket) = self.open.remove(id) else { return false };
        ticket.issued.elapsed() < LIFE
            && ticket.target == target(address)
            && ticket.method == format!("http{}", method.to_ascii_lowercase())
    }
}

/// The path and query of an address.
fn target(address: &str) -> &str {
    let Some((_, rest)) = address.split_once("://") else { return address };
    rest.find('/').map_or("/", |slash| &rest[slash..])
}

#[cfg(test)]
mod tests {
    use super::Tickets;

    #[test]
    fn a_ticket_opens_its_request_once() {
        let mut tickets = Tickets::default();
        let id = tickets.issue("httpGet", "https://h:1/folder/a?dsName=b");
        assert!(!tickets.redeem("x", "GET", "/folder/a?dsName=b"));
        assert!(tickets.redeem(&id, "GET", "/folder/a?dsName=b"));
        assert!(!tickets.redeem(&id, "GET", "/folder/a?dsName=b"));
        let id = tickets.issue("httpGet", "https://h:1/folder/a");
        assert!(!tickets.redeem(&id, "GET", "/folder/b"));
    }
}
