//! Valid requests for every method, and the check of a call's outcome after one value has been replaced.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use opi_spdk::api;
use prost_reflect::{DynamicMessage, MethodDescriptor};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::common::kinds::Place;
use crate::common::{
    check_details, find_method, has_behaviour, message_of, name_of, pcie_spec, violations,
};
use crate::field::Field;
use crate::values::{self, Bad};

/// Upper bound of a call: the largest request has 1 MiB, and the machine may be busy.
const BOUND: Duration = Duration::from_secs(3);

/// Status codes that blame the request.
const FAULTS_OF_THE_CLIENT: [Code; 7] = [
    Code::InvalidArgument,
    Code::NotFound,
    Code::AlreadyExists,
    Code::FailedPrecondition,
    Code::OutOfRange,
    Code::ResourceExhausted,
    Code::Unimplemented,
];

/// Marked REQUIRED in the proto files, but clients omit them, so that the server does not require them.
const NOT_NEEDED: [&str; 6] = [
    "opi_api.inventory.v1.GetInventoryRequest.name",
    // Flat kinds: the server ignores the parent.
    "opi_api.storage.v1.ListEncryptedVolumesRequest.parent",
    "opi_api.storage.v1.ListQosVolumesRequest.parent",
    "opi_api.storage.v1.ListVirtioScsiControllersRequest.parent",
    "opi_api.storage.v1.ListVirtioScsiLunsRequest.parent",
    "opi_api.storage.v1.ListVirtioScsiTargetsRequest.parent",
];

/// A valid request.
struct Request {
    method: MethodDescriptor,
    message: DynamicMessage,
    /// Fields that are not set keep their values (an update without a mask).
    is_partial: bool,
}

impl Request {
    fn new(method: &str, request: Value) -> Self {
        let method = find_method(method);
        let message = message_of(&method, request);
        Self {
            method,
            message,
            is_partial: false,
        }
    }

    fn is_about(&self, kind: &str) -> bool {
        self.method.name().ends_with(kind)
    }

    /// Returns whether the method may change state.
    fn is_change(&self) -> bool {
        !["Get", "List", "Stats"]
            .iter()
            .any(|verb| self.method.name().starts_with(verb))
    }
}

/// The methods covered so far, and the failures.
#[derive(Default)]
pub struct Trial {
    methods: BTreeSet<String>,
    calls: usize,
    faults: Vec<String>,
}

impl Trial {
    /// Tries all requests of a kind.
    pub async fn of_kind(&mut self, place: &Place) {
        let (_, good) = place.make(0).await;
        for request in requests(place).await {
            self.methods.insert(request.method.full_name().to_owned());
            for field in Field::all_of(&request.method.input()) {
                for bad in values::of(field.descriptor()) {
                    self.value(place, &good, &request, &field, bad).await;
                }
            }
        }
        for object in place.resource.names(&place.parent).await {
            assert_eq!(
                object,
                name_of(&good),
                "an object of the trial was left behind"
            );
        }
    }

    /// Asserts that all methods were covered and that there were no failures.
    pub fn finish(self) {
        let all = api::pool().services().flat_map(|service| {
            // Server-streaming methods are covered by tests/objects.
            let methods = service.methods().filter(|m| !m.is_server_streaming());
            let names = methods.map(|m| m.full_name().to_owned());
            names.collect::<Vec<_>>()
        });
        assert_eq!(self.methods, all.collect(), "methods");
        let (calls, faults) = (self.calls, self.faults.len());
        assert!(
            self.faults.is_empty(),
            "{faults} of {calls} calls:\n{}",
            self.faults.join("\n")
        );
    }

    async fn value(
        &mut self,
        place: &Place,
        good: &Value,
        request: &Request,
        field: &Field,
        bad: Bad,
    ) {
        let mut message = request.message.clone();
        field.set(&mut message, bad.value.clone());
        if message == request.message {
            return;
        }
        self.calls += 1;
        let client = &place.resource.client;
        let begin = Instant::now();
        let answer = client.call_method(&request.method, &message).await;
        let took = begin.elapsed();
        let judged = judge(request, field, &bad, &answer);
        if let Err(fault) = judged.and_then(|()| in_time(took)) {
            let shown = shown(&bad);
            let fault = format!(
                "{}, {} = {shown}: {fault}",
                request.method.name(),
                field.path()
            );
            self.faults.push(fault);
        }
        if request.is_change() {
            let unchanged = restore(place, good).await;
            if answer.is_err() && !unchanged {
                let what = "the request failed but changed state";
                self.faults.push(format!(
                    "{}, {} = {}: {what}",
                    request.method.name(),
                    field.path(),
                    shown(&bad)
                ));
            }
        }
    }
}

/// Returns valid requests for all methods of a kind: for the existing object 0, and to create object 1.
async fn requests(place: &Place) -> Vec<Request> {
    let resource = &place.resource;
    let name = place.name(&place.id(0));
    let sample = place.sample(0).await;
    let mut all = Vec::new();
    for object in samples(place).await {
        let request = resource.create_request(&place.parent, &place.id(1), object.clone());
        all.push(Request::new(&resource.method("Create"), request));
        let missing = place.name(&place.id(1));
        let mut request = resource.update_request(&missing, object, None);
        request["allow_missing"] = true.into();
        all.push(Request::new(&resource.method("Update"), request));
    }
    for mask in [None, Some(["*"].as_slice())] {
        let request = resource.update_request(&name, sample.clone(), mask);
        let request = Request::new(&resource.method("Update"), request);
        all.push(Request {
            is_partial: mask.is_none(),
            ..request
        });
    }
    let list = resource.list_request(&place.parent, 0, "");
    all.push(Request::new(&resource.method("List"), list));
    for verb in ["Get", "Stats", "Delete"] {
        let request = json!({ "name": name });
        all.push(Request::new(&resource.method(verb), request));
    }
    if resource.message == "NvmePath" {
        let parent = place.parent.as_str();
        let id = parent.rsplit('/').next().unwrap_or_default();
        let namespace = format!("{parent}/nvmeRemoteNamespaces/{id}n1");
        all.extend([
            Request::new("ResetNvmeRemoteController", json!({ "name": parent })),
            Request::new("ListNvmeRemoteNamespaces", json!({ "parent": parent })),
            Request::new("GetNvmeRemoteNamespace", json!({ "name": namespace })),
            Request::new("GetInventory", json!({ "name": "inventory" })),
            Request::new("ListObjects", json!({})),
            Request::new("ListHosts", json!({})),
            Request::new(
                "RekeyNvmeHost",
                json!({ "name": "nvmeSubsystems/none/nvmeHosts/none", "psk": true }),
            ),
            Request::new(
                "DisconnectHost",
                json!({ "name": "nvmeSubsystems/none", "host_nqn": "nqn.2022-09.io.spdk:h" }),
            ),
        ]);
    }
    all
}

/// Returns valid objects that do not exist yet: one for each variant of the kind.
async fn samples(place: &Place) -> Vec<Value> {
    let mut all = vec![place.sample(1).await];
    if place.resource.message == "NvmeController" {
        all.push(pcie_spec(1));
    }
    all
}

/// Restores the kind's objects; returns whether they were unchanged.
async fn restore(place: &Place, good: &Value) -> bool {
    let there = place.resource.list(&place.parent).await;
    if there == [good.clone()] {
        return true;
    }
    for object in &there {
        if object != good {
            place.resource.deleted(&name_of(object)).await;
        }
    }
    if !there.contains(good) {
        let (_, again) = place.make(0).await;
        assert_eq!(&again, good);
    }
    false
}

fn in_time(took: Duration) -> Result<(), String> {
    if took <= BOUND {
        return Ok(());
    }
    Err(format!("the call took {took:?}, more than {BOUND:?}"))
}

/// Checks the outcome of a request in which the field has this value.
fn judge(
    request: &Request,
    field: &Field,
    bad: &Bad,
    answer: &Result<DynamicMessage, Status>,
) -> Result<(), String> {
    let required = bad.is_empty && is_required(request, field);
    let status = match answer {
        Ok(_) if required => return Err("the call succeeded without a REQUIRED field".into()),
        Ok(_) => return Ok(()),
        Err(status) => status,
    };
    let other_peer = ["traddr", "trsvcid"].contains(&field.descriptor().name());
    if status.code() == Code::Unavailable && request.is_about("NvmePath") && other_peer {
        return Ok(());
    }
    if !FAULTS_OF_THE_CLIENT.contains(&status.code()) {
        return Err(format!("{status}"));
    }
    if field.is_ignored() && !is_name_of_update(request, field) {
        return Err(format!(
            "the field is OUTPUT_ONLY, but the call failed: {status}"
        ));
    }
    check_details(status);
    let named = violations(status);
    if required && !(named.contains(&field.path()) && status.code() == Code::InvalidArgument) {
        return Err(format!(
            "no INVALID_ARGUMENT for a missing REQUIRED field: {status}"
        ));
    }
    let scope = field.scope(bad.is_known, &request.message);
    let is_named = named.iter().any(|named| overlap(named, &scope));
    if status.code() == Code::InvalidArgument && !is_named {
        return Err(format!("the field is not among the violations: {status}"));
    }
    Ok(())
}

fn is_required(request: &Request, field: &Field) -> bool {
    let descriptor = field.descriptor();
    let of_object = field.path().contains('.');
    has_behaviour(descriptor, "REQUIRED")
        && !(request.is_partial && of_object)
        && !NOT_NEEDED.contains(&descriptor.full_name())
}

/// Returns whether the field is the name in an update's object, which selects the object to update.
fn is_name_of_update(request: &Request, field: &Field) -> bool {
    let path = field.path();
    request.method.name().starts_with("Update")
        && path
            .split_once('.')
            .is_some_and(|(_, inner)| inner == "name")
}

/// Returns whether one path is a prefix of the other.
fn overlap(one: &str, other: &str) -> bool {
    let lies_in = |inner: &str, outer: &str| {
        let rest = inner.strip_prefix(outer);
        rest.is_some_and(|rest| outer.is_empty() || rest.is_empty() || rest.starts_with('.'))
    };
    lies_in(one, other) || lies_in(other, one)
}

fn shown(bad: &Bad) -> String {
    let text = match &bad.value {
        None => "nothing".to_owned(),
        Some(value) => format!("{value:?}"),
    };
    text.chars().take(80).collect()
}
