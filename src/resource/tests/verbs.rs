//! Tests of the verbs, on kinds whose objects are kept in the test.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::super::*;
use super::{World, called, create, named, of, text};
use crate::api::storage::{NullVolume, NvmeSubsystem};
use crate::error::Error;

#[tokio::test]
async fn an_object_is_named_by_the_client_or_by_the_server() {
    let world = World::new();
    assert_eq!(
        world.volume("a", of(512, 64)).await.unwrap().name,
        "volumes/a"
    );
    let name = world.volume("", of(512, 64)).await.unwrap().name;
    assert!(uuid::Uuid::parse_str(name.strip_prefix("volumes/").unwrap()).is_ok());
    assert!(text(world.volume("A", of(512, 64)).await).starts_with("null_volume_id: \"A\""));
}

#[tokio::test]
async fn a_create_that_is_repeated_answers_the_object_and_another_is_refused() {
    let world = World::new();
    let first = world.volume("a", of(512, 64)).await.unwrap();
    assert_eq!(first.uuid, "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb");
    assert_eq!(world.volume("a", of(512, 64)).await, Ok(first));
    let error = text(world.volume("a", of(4096, 64)).await);
    assert!(
        error.contains("volumes/a exists with other values of block_size"),
        "{error}"
    );
    assert_eq!(world.engine.made.lock().len(), 1);
}

#[tokio::test]
async fn broken_rules_are_told_once_for_each_field() {
    let world = World::new();
    assert_eq!(
        text(world.volume("a", of(0, 0)).await),
        "null_volume.block_size: is required; null_volume.blocks_count: is required"
    );
    assert_eq!(
        text(world.volume("a", of(513, 0)).await),
        "null_volume.block_size: 513: one of [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]; \
         null_volume.blocks_count: is required"
    );
    let nothing = Create {
        parent: String::new(),
        id: String::new(),
        object: None,
    };
    let result = world.volumes.create(CallContext::default(), nothing).await;
    assert_eq!(text(result), "null_volume: is required");
}

#[tokio::test]
async fn a_failed_create_leaves_nothing() {
    let world = World::new();
    world.engine.fails.store(true, Ordering::Relaxed);
    let error = text(world.volume("a", of(512, 64)).await);
    assert_eq!(error, "null_volume.blocks_count: does not fit");
    assert_eq!(
        text(world.volumes.get("a").map(drop)),
        "volumes/a (NullVolume) was not found"
    );
    assert_eq!(world.shared.registry.owner(&Key::bdev("a")), None);
    world.engine.fails.store(false, Ordering::Relaxed);
    world.volume("a", of(512, 64)).await.unwrap();
}

#[tokio::test]
async fn a_panic_is_one_calls_failure_and_nobody_elses() {
    let world = World::new();
    world.engine.panics.store(true, Ordering::Relaxed);
    let error = world.volume("a", of(512, 64)).await.unwrap_err();
    assert!(matches!(error, Error::Internal { .. }), "{error}");
    world.engine.panics.store(false, Ordering::Relaxed);
    world.volume("a", of(512, 64)).await.unwrap();
    world.delete("a").await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_cuts_nothing_off() {
    let (world, gate) = World::gated();
    let call = {
        let volumes = Arc::clone(&world.volumes);
        tokio::spawn(async move {
            volumes
                .create(CallContext::default(), create("", "a", of(512, 64)))
                .await
        })
    };
    gate.entered.acquire().await.unwrap().forget();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    gate.may_go_on.add_permits(1);
    // Drains the change whose caller was cancelled.
    world.shared.stop().await;
    assert_eq!(world.volumes.get("a").unwrap().name, "volumes/a");
    let error = text(world.volume("b", of(512, 64)).await);
    assert!(error.contains("stopping"), "{error}");
}

#[tokio::test]
async fn what_a_change_under_way_has_is_free_again_when_that_fails() {
    let (world, gate) = World::gated();
    let made = |id: &'static str| {
        let volumes = Arc::clone(&world.volumes);
        let mut object = of(512, 64);
        object.uuid = "2b4e28ba-2fa1-11d2-883f-b9a761bde3fb".into();
        tokio::spawn(async move {
            let request = create("", id, object);
            volumes.create(CallContext::default(), request).await
        })
    };
    let first = made("a");
    gate.entered.acquire().await.unwrap().forget();
    world.engine.fails.store(true, Ordering::Relaxed);
    let second = made("b");
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!second.is_finished(), "{:?}", second.await);
    gate.may_go_on.add_permits(1);
    first.await.unwrap().unwrap_err();
    gate.entered.acquire().await.unwrap().forget();
    world.engine.fails.store(false, Ordering::Relaxed);
    gate.may_go_on.add_permits(1);
    assert_eq!(second.await.unwrap().unwrap().name, "volumes/b");
}

/// The race: the object is as the precondition wants when the update begins, and changes before it has the lock.
#[tokio::test]
async fn an_update_with_a_precondition_leaves_an_object_that_has_changed_meanwhile() {
    let world = World::new();
    world.volume("a", of(512, 64)).await.unwrap();
    let update = |blocks: i64, applies: fn(&NullVolume) -> bool| {
        let volumes = Arc::clone(&world.volumes);
        let request = Update {
            object: Some(called("volumes/a", of(0, blocks))),
            mask: Some(vec!["blocks_count".into()]),
            allow_missing: false,
        };
        tokio::spawn(async move {
            let call = CallContext::default();
            volumes.update_if(call, request, applies).await
        })
    };
    let (entered, may_go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let reading = {
        let volumes = Arc::clone(&world.volumes);
        let (entered, may_go_on) = (Arc::clone(&entered), Arc::clone(&may_go_on));
        let action = async move |_, _| {
            entered.add_permits(1);
            may_go_on.acquire().await.unwrap().forget();
            Ok(())
        };
        tokio::spawn(async move {
            volumes
                .with(CallContext::default(), "volumes/a", action)
                .await
        })
    };
    entered.acquire().await.unwrap().forget();
    let waiting = [
        update(128, |_| true),
        update(256, |volume| volume.blocks_count == 64),
    ];
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    may_go_on.add_permits(1);
    reading.await.unwrap().unwrap();
    for update in waiting {
        assert_eq!(update.await.unwrap().unwrap().blocks_count, 128);
    }
    let changed = update(256, |volume| volume.blocks_count == 128).await;
    assert_eq!(changed.unwrap().unwrap().blocks_count, 256);
}

#[tokio::test]
async fn a_call_that_waits_for_a_change_that_hangs_fails_in_its_time_and_names_what_is_in_the_way()
{
    let (world, gate) = World::gated();
    let volumes = || Arc::clone(&world.volumes);
    let hanging = {
        let (volumes, request) = (volumes(), create("", "a", of(512, 64)));
        tokio::spawn(async move { volumes.create(CallContext::default(), request).await })
    };
    gate.entered.acquire().await.unwrap().forget();
    let call = || CallContext::within(Duration::from_millis(100));
    let limit = Duration::from_secs(20);
    let in_the_way = "a change of nullVolumes/a has had the lock of bdev/a";
    let volumes = volumes();
    let update = Update {
        object: Some(called("volumes/a", of(512, 65))),
        mask: None,
        allow_missing: true,
    };
    let create = volumes.create(call(), create("", "a", of(512, 64)));
    let create = tokio::time::timeout(limit, create).await;
    let update = tokio::time::timeout(limit, volumes.update(call(), update)).await;
    for (what, late) in [("create", create), ("update", update)] {
        let late = late.expect("it does not wait for ever");
        let error = late.expect_err("the object is locked");
        assert!(matches!(error, Error::Unavailable(_)), "{what}: {error:?}");
        assert!(error.to_string().contains(in_the_way), "{what}: {error}");
    }
    gate.may_go_on.add_permits(1);
    hanging.await.unwrap().unwrap();

    // An existing object whose lock is held by another change.
    let name = volumes.meta().parse("name", "volumes/a").unwrap();
    let holder = CallContext::default();
    let held = volumes.lock(&holder, &name, [name.key().clone()], []);
    let held = held.await.unwrap();
    let gone = named("a");
    let delete = tokio::time::timeout(limit, volumes.delete(call(), &gone)).await;
    let action = volumes.with(call(), "volumes/a", async |_, _| Ok(()));
    let action = tokio::time::timeout(limit, action).await;
    for (what, late) in [("delete", delete), ("action", action)] {
        let error = late.expect("it does not wait for ever").unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{what}: {error:?}");
    }
    drop(held);
    world.delete("a").await.unwrap();
}

#[tokio::test]
async fn an_update_asks_the_kind_for_what_differs_only() {
    let world = World::new();
    world.volume("a", of(512, 64)).await.unwrap();
    for mask in [&[][..], &["*"], &["blocks_count"]] {
        let same = world
            .change(called("volumes/a", of(512, 64)), mask)
            .await
            .unwrap();
        assert_eq!(
            (same.blocks_count, same.uuid.as_str()),
            (64, "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
        );
    }
    // Echoing server-assigned values with the mask `*` is not a change either.
    let object = world.volumes.get("a").unwrap();
    assert_eq!(world.change(object.clone(), &["*"]).await, Ok(object));
    assert_eq!(world.engine.updates.load(Ordering::Relaxed), 0);

    let grown = world.change(called("a", of(0, 128)), &[]).await.unwrap();
    assert_eq!((grown.blocks_count, grown.block_size), (128, 512));
    assert_eq!(world.volumes.get("a"), Ok(grown));
    assert_eq!(world.engine.updates.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_update_that_cannot_be_made_changes_nothing() {
    let world = World::new();
    let before = world.volume("a", of(512, 64)).await.unwrap();
    let mut other = called("a", of(512, 64));
    other.uuid = "3b4e28ba-2fa1-11d2-883f-b9a761bde3fb".into();
    assert!(text(world.change(other, &[]).await).starts_with("null_volume.uuid: cannot change"));
    assert!(text(world.change(called("a", of(513, 64)), &[]).await).contains("513: one of"));
    let error = text(world.change(called("a", of(512, 64)), &["nope"]).await);
    assert!(
        error.starts_with("update_mask: \"nope\" does not exist"),
        "{error}"
    );
    assert_eq!(
        text(world.change(called("a", of(512, 64)), &["*", "name"]).await),
        "update_mask: \"*\" means all fields and stands alone"
    );
    let cleared = text(
        world
            .change(called("a", of(512, 0)), &["blocks_count"])
            .await,
    );
    assert_eq!(cleared, "null_volume.blocks_count: is required");
    assert!(
        text(world.change(of(512, 64), &[]).await).starts_with("null_volume.name: is required")
    );
    assert_eq!(
        text(world.change(called("b", of(512, 64)), &[]).await),
        "volumes/b (NullVolume) was not found"
    );
    assert_eq!(world.volumes.get("a"), Ok(before));
}

#[tokio::test]
async fn allow_missing_makes_on_update_and_forgives_on_delete() {
    let world = World::new();
    let upsert = |name: &str, blocks| Update {
        object: Some(called(name, of(512, blocks))),
        mask: Some(vec!["block_size".into()]),
        allow_missing: true,
    };
    let call = CallContext::default;
    let made = world
        .volumes
        .update(call(), upsert("volumes/a", 64))
        .await
        .unwrap();
    assert_eq!((made.name.as_str(), made.blocks_count), ("volumes/a", 64));
    let error = text(world.volumes.update(call(), upsert("volumes/A", 64)).await);
    assert!(error.starts_with("null_volume.name: \"A\""), "{error}");
    let forgiving = Delete {
        name: "a".into(),
        allow_missing: true,
    };
    world.volumes.delete(call(), &forgiving).await.unwrap();
    world.volumes.delete(call(), &forgiving).await.unwrap();
    assert_eq!(
        text(world.delete("a").await),
        "volumes/a (NullVolume) was not found"
    );
}

#[tokio::test]
async fn what_is_in_use_is_neither_deleted_nor_rebuilt() {
    let world = World::new();
    world.volume("a", of(512, 64)).await.unwrap();
    world.subsystem("s", "nqn.2022-09.io.spdk:n").await.unwrap();
    world
        .namespace("nvmeSubsystems/s", "n", "nullVolumes/a")
        .await
        .unwrap();
    let user = "is in use by nvmeSubsystems/s/nvmeNamespaces/n";
    assert!(text(world.delete("a").await).contains(&format!("volumes/a (NullVolume) {user}")));
    assert!(text(world.change(called("a", of(4096, 64)), &[]).await).contains(user));
    world.change(called("a", of(512, 128)), &[]).await.unwrap();
    let result = world
        .subsystems
        .delete(CallContext::default(), &named("s"))
        .await;
    assert!(text(result).contains(&format!("nvmeSubsystems/s {user}")));
    let second = world.namespace("nvmeSubsystems/s", "m", "volumes/a").await;
    assert!(text(second).contains(&format!("volumes/a (NullVolume) {user}")));

    let namespace = named("nvmeSubsystems/s/nvmeNamespaces/n");
    world
        .namespaces
        .delete(CallContext::default(), &namespace)
        .await
        .unwrap();
    world.delete("a").await.unwrap();
    world
        .subsystems
        .delete(CallContext::default(), &named("s"))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_referred_to_must_be_there() {
    let world = World::new();
    let orphan = world.namespace("nvmeSubsystems/s", "n", "a").await;
    assert_eq!(text(orphan), "nvmeSubsystems/s was not found");
    world.subsystem("s", "nqn.2022-09.io.spdk:n").await.unwrap();
    let result = world
        .namespace("nvmeSubsystems/s", "n", "nullVolumes/a")
        .await;
    assert_eq!(text(result), "nullVolumes/a was not found");
    assert!(text(world.namespace("", "n", "a").await).starts_with("parent: is required"));
}

#[tokio::test]
async fn two_objects_cannot_have_the_same_thing() {
    let world = World::new();
    world.subsystem("s", "nqn.2022-09.io.spdk:n").await.unwrap();
    let error = world
        .subsystem("t", "nqn.2022-09.io.spdk:n")
        .await
        .unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }));
    assert_eq!(
        error.to_string(),
        "nqn \"nqn.2022-09.io.spdk:n\" already belongs to nvmeSubsystems/s"
    );
}

#[tokio::test]
async fn keys_come_in_and_never_go_out() {
    let world = World::new();
    let psk = |object: NvmeSubsystem| object.spec.unwrap().psk;
    assert!(psk(world.subsystem("s", "nqn.2022-09.io.spdk:n").await.unwrap()).is_empty());
    assert!(
        psk(world.subsystem("s", "nqn.2022-09.io.spdk:n").await.unwrap()).is_empty(),
        "the same again"
    );
    assert!(psk(world.subsystems.get("s").unwrap()).is_empty());
    let page = world.subsystems.list(&List::default()).unwrap();
    assert!(page.items.into_iter().all(|object| psk(object).is_empty()));
    let key = Key::from("nvmeSubsystems/s");
    assert_eq!(psk(world.subsystems.object(&key).unwrap()), b"secret");
}

#[tokio::test]
async fn pages_go_on_after_inserts_and_deletes() {
    let world = World::new();
    for id in ["d", "b", "f", "a", "e"] {
        world.volume(id, of(512, 64)).await.unwrap();
    }
    let page = |token: &str| {
        let request = List {
            parent: Some("ignored".into()),
            page_size: 2,
            page_token: token.into(),
            scope: Scope::default(),
        };
        let page = world.volumes.list(&request).unwrap();
        let names: Vec<String> = page.items.into_iter().map(|item| item.name).collect();
        (names.join(" "), page.next_page_token)
    };
    let (names, token) = page("");
    assert_eq!(names, "volumes/a volumes/b");
    world.delete("b").await.unwrap();
    world.volume("c", of(512, 64)).await.unwrap();
    let (names, token) = page(&token);
    assert_eq!(names, "volumes/c volumes/d");
    let last = ("volumes/e volumes/f".to_owned(), String::new());
    assert_eq!(page(&token), last);
}

#[tokio::test]
async fn a_list_of_parts_is_of_one_parent() {
    let world = World::new();
    world.subsystem("s", "nqn.2022-09.io.spdk:n").await.unwrap();
    let other = "nqn.2022-09.io.spdk:m";
    world.subsystem("s-2", other).await.unwrap();
    for id in ["a", "b"] {
        world.volume(id, of(512, 64)).await.unwrap();
    }
    world.namespace("nvmeSubsystems/s", "a", "a").await.unwrap();
    world
        .namespace("nvmeSubsystems/s-2", "b", "b")
        .await
        .unwrap();
    let list = |parent: &str| {
        world.namespaces.list(&List {
            parent: Some(parent.into()),
            ..Default::default()
        })
    };
    let page = list("nvmeSubsystems/s").unwrap();
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.items[0].name, "nvmeSubsystems/s/nvmeNamespaces/a");
    assert_eq!(
        text(list("nvmeSubsystems/t")),
        "nvmeSubsystems/t was not found"
    );
    assert_eq!(text(list("")), "parent: is required");
}

/// In a race with other clients a call may lose; any other error is a fault.
fn may_lose<T>(result: Result<T, Error>) {
    if let Err(error) = result {
        let lost = matches!(error, Error::NotFound { .. } | Error::AlreadyExists { .. });
        assert!(lost, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_that_fight_over_names_lose_nothing_and_leave_nothing() {
    let world = Arc::new(World::new());
    let tasks: Vec<_> = (0..64_u64)
        .map(|client| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                for round in 0..20 {
                    let id = format!("v{}", (client + round) % 5);
                    may_lose(world.volume(&id, of(512, 64)).await);
                    may_lose(
                        world
                            .change(called(&id, of(512, 64 + client as i64)), &[])
                            .await,
                    );
                    may_lose(world.delete(&id).await);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let left = world.volumes.list(&List::default()).unwrap().items.len();
    assert_eq!(world.engine.made.lock().len(), left);
    for id in 0..5 {
        let id = format!("v{id}");
        let exists = world.volumes.get(&id).is_ok();
        assert_eq!(
            world.shared.registry.owner(&Key::bdev(&id)).is_some(),
            exists
        );
    }
}
