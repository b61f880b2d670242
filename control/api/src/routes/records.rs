//! Records: listed, shown, made, changed, deleted; the same for every kind.

use axum::http::Method;

use crate::access::Access;
use crate::answer::{Done, Listed, Made, Shown};
use crate::api::now_ms;
use crate::backend::{Backend, Records};
use crate::call::Call;
use crate::model::{CredentialRecord, Id, Job, Proxy, Repository, TrafficRule, VCenter};
use crate::problem::Problem;
use crate::record::{Draft, Record};
use crate::table::{Head, Route, route};

pub(super) fn routes() -> Vec<Route> {
    let kinds = [
        of::<VCenter>(),
        of::<Proxy>(),
        of::<Repository>(),
        of::<Job>(),
        of::<TrafficRule>(),
        of::<CredentialRecord>(),
    ];
    kinds.into_iter().flatten().collect()
}

fn of<T: Record>() -> [Route; 5]
where
    dyn Backend: Records<T>,
{
    let (kind, all) = (T::KIND, T::PATH);
    let one = format!("{all}/{{id}}");
    let head = |method, path, access, verb: &str, summary: &str| {
        (method, path, access, format!("{kind}_{verb}"), format!("{summary} ({kind})."))
    };
    let [list_head, get_head, create_head, update_head, delete_head] = [
        head(Method::GET, all, Access::VIEWER, "list", "All of them"),
        head(Method::GET, &one, Access::VIEWER, "get", "One of them"),
        head(Method::POST, all, Access::ADMIN, "create", "Makes one"),
        head(Method::PUT, &one, Access::ADMIN, "update", "Replaces one"),
        head(Method::DELETE, &one, Access::ADMIN, "delete", "Deletes one"),
    ];
    [
        route(named(&list_head), list::<T>),
        route(named(&get_head), get::<T>),
        route(named(&create_head), create::<T>),
        route(named(&update_head), update::<T>),
        route(named(&delete_head), delete::<T>),
    ]
}

fn named<'a>(row: &'a (Method, &'a str, Access, String, String)) -> Head<'a> {
    let (method, path, access, name, summary) = row;
    Head { method: method.clone(), path, access: *access, name, summary }
}

async fn list<T: Record>(call: Call) -> Result<Listed<T>, Problem>
where
    dyn Backend: Records<T>,
{
    Records::<T>::list(call.api.backend()).await.map(Listed::all)
}

async fn get<T: Record>(call: Call<Id>) -> Result<Shown<T>, Problem>
where
    dyn Backend: Records<T>,
{
    Records::<T>::get(call.api.backend(), call.path).await.map(Shown)
}

async fn create<T: Record>(call: Call<(), (), Draft<T>>) -> Result<Made<T>, Problem>
where
    dyn Backend: Records<T>,
{
    let now_ms = now_ms();
    let (record, secret) = call.body.into_new(Id::draw(now_ms), now_ms)?;
    if let Some(field) = T::SECRET
        && secret.is_none()
    {
        return Err(Problem::invalid(format!("{field}: is missing; give one")));
    }
    Records::<T>::create(call.api.backend(), record, secret).await.map(Made)
}

async fn update<T: Record>(call: Call<Id, (), Draft<T>>) -> Result<Shown<T>, Problem>
where
    dyn Backend: Records<T>,
{
    let old = Records::<T>::get(call.api.backend(), call.path).await?;
    let (record, secret) = call.body.into_change(&old)?;
    Records::<T>::update(call.api.backend(), record, secret).await.map(Shown)
}

async fn delete<T: Record>(call: Call<Id>) -> Result<Done, Problem>
where
    dyn Backend: Records<T>,
{
    Records::<T>::delete(call.api.backend(), call.path).await.map(|()| Done)
}
