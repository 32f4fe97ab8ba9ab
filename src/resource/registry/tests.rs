//! Tests of the registry's guarantees.

use super::super::volume_ref;
use super::*;

fn name(text: &str) -> Name {
    Name::new(text.into(), None)
}

fn hold(registry: &Arc<Registry>, who: &str, claims: Claims) -> Result<(), Error> {
    registry
        .reserve(&name(who), &claims)
        .map(|reserved| reserved.settle(claims))
}

#[test]
fn two_subsystems_cannot_have_one_nqn() {
    let registry = Arc::new(Registry::default());
    hold(&registry, "nvmeSubsystems/a", Claims::new().owns("nqn/n")).unwrap();
    let error = hold(&registry, "nvmeSubsystems/b", Claims::new().owns("nqn/n")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "nqn \"n\" already belongs to nvmeSubsystems/a"
    );
    registry.release(&name("nvmeSubsystems/a"));
    hold(&registry, "nvmeSubsystems/b", Claims::new().owns("nqn/n")).unwrap();
}

#[test]
fn a_volume_cannot_have_the_name_of_a_bdev_that_a_remote_controller_may_bring() {
    let controller = || Claims::new().owns(volume_ref::remote_bdevs("x"));
    let volume = |name: &str| Claims::new().owns(Key::bdev(name));
    for (first, second) in [(controller(), volume("xn1")), (volume("xn1"), controller())] {
        let registry = Arc::new(Registry::default());
        hold(&registry, "first", first).unwrap();
        let error = hold(&registry, "second", second).unwrap_err().to_string();
        assert!(error.ends_with("already belongs to first"), "{error}");
        hold(&registry, "third", volume("x")).unwrap();
        hold(&registry, "fourth", volume("yn1")).unwrap();
        hold(&registry, "fifth", volume("yn2")).unwrap();
    }
}

#[test]
fn one_moves_data_through_a_bdev_and_others_may_refer_to_it() {
    let registry = Arc::new(Registry::default());
    let bdev = || Key::bdev("Malloc0");
    hold(&registry, "ns/1", Claims::new().takes(bdev())).unwrap();
    hold(&registry, "qos/1", Claims::new().shares(bdev())).unwrap();
    let error = hold(&registry, "ns/2", Claims::new().takes(bdev())).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("bdev/Malloc0 is in use by ns/1"),
        "{error}"
    );
    registry.release(&name("ns/1"));
    hold(&registry, "ns/2", Claims::new().takes(bdev())).unwrap();
}

#[test]
fn one_moves_data_through_a_bdev_whichever_of_its_names_is_used() {
    let registry = Arc::new(Registry::default());
    let alias = Claims::new().owns_alias(Key::bdev("limited"), Key::bdev("base"));
    hold(&registry, "qos/1", alias).unwrap();
    hold(&registry, "ns/1", Claims::new().takes(Key::bdev("base"))).unwrap();
    for other in ["limited", "base"] {
        let error = hold(&registry, "ns/2", Claims::new().takes(Key::bdev(other))).unwrap_err();
        assert!(error.to_string().contains("in use by ns/1"), "{error}");
    }
    registry.release(&name("ns/1"));
    hold(&registry, "ns/2", Claims::new().takes(Key::bdev("limited"))).unwrap();
    assert!(hold(&registry, "ns/1", Claims::new().takes(Key::bdev("base"))).is_err());
    assert_eq!(registry.users_of(&name("qos/1")), [name("ns/2")]);
    registry.release(&name("qos/1"));
    hold(&registry, "ns/1", Claims::new().takes(Key::bdev("base"))).unwrap();
}

#[test]
fn a_failed_change_gives_back_what_it_reserved_and_keeps_what_was_held() {
    let registry = Arc::new(Registry::default());
    hold(&registry, "a", Claims::new().owns("nqn/1")).unwrap();
    drop(
        registry
            .reserve(&name("a"), &Claims::new().owns("nqn/2"))
            .unwrap(),
    );
    assert_eq!(registry.owner(&Key::from("nqn/1")), Some(name("a")));
    assert_eq!(registry.owner(&Key::from("nqn/2")), None);
    drop(
        registry
            .reserve(&name("b"), &Claims::new().owns("nqn/2"))
            .unwrap(),
    );
    assert_eq!(registry.tables.lock().len(), (1, 1));
    assert_eq!(registry.owner(&Key::from("nqn/1")), Some(name("a")));
}

#[test]
fn what_a_kind_adds_to_a_reservation_goes_with_it() {
    let registry = Arc::new(Registry::default());
    let outer = registry
        .reserve(&name("a"), &Claims::new().owns("nqn/1"))
        .unwrap();
    registry
        .reserve(&name("a"), &Claims::new().owns("cntlid/1"))
        .unwrap()
        .keep();
    assert!(hold(&registry, "b", Claims::new().owns("cntlid/1")).is_err());
    drop(outer);
    hold(&registry, "b", Claims::new().owns("cntlid/1").owns("nqn/1")).unwrap();
}

#[test]
fn an_update_frees_what_the_object_no_longer_uses() {
    let registry = Arc::new(Registry::default());
    hold(&registry, "ns", Claims::new().takes(Key::bdev("a"))).unwrap();
    hold(&registry, "ns", Claims::new().takes(Key::bdev("b"))).unwrap();
    hold(&registry, "other", Claims::new().takes(Key::bdev("a"))).unwrap();
    assert!(hold(&registry, "third", Claims::new().takes(Key::bdev("b"))).is_err());
}

#[test]
fn the_users_of_a_resource_are_those_of_all_that_it_owns() {
    let registry = Arc::new(Registry::default());
    let volume = name("nullVolumes/a");
    hold(
        &registry,
        "nullVolumes/a",
        Claims::new().owns("nullVolumes/a").owns("bdev/a"),
    )
    .unwrap();
    hold(&registry, "z", Claims::new().takes("bdev/a")).unwrap();
    hold(&registry, "b", Claims::new().shares("nullVolumes/a")).unwrap();
    assert_eq!(registry.users_of(&volume), [name("b"), name("z")]);
}

#[test]
fn what_is_needed_must_be_there() {
    let registry = Arc::new(Registry::default());
    let error = hold(&registry, "ns", Claims::new().needs("nullVolumes/a")).unwrap_err();
    assert_eq!(error, Error::not_found(&Key::from("nullVolumes/a")));
}

#[test]
fn what_lets_one_alone_join_it_is_joined_by_one() {
    let registry = Arc::new(Registry::default());
    let path = || Claims::new().joins("controllers/a");
    let many = Claims::new().owns("controllers/a");
    hold(&registry, "controllers/a", many).unwrap();
    hold(&registry, "paths/1", path()).unwrap();
    hold(&registry, "paths/2", path()).unwrap();
    registry.release(&name("paths/1"));
    registry.release(&name("paths/2"));
    let one = Claims::new().owns("controllers/a");
    let one = one.admits_one("controllers/a");
    hold(&registry, "controllers/a", one).unwrap();
    hold(&registry, "paths/1", path()).unwrap();
    hold(&registry, "paths/1", path()).unwrap();
    let error = hold(&registry, "paths/2", path()).unwrap_err().to_string();
    let wanted = "controllers/a is in use by paths/1";
    assert!(error.starts_with(wanted), "{error}");
    // The single-joiner limit does not apply to objects that only refer to the key.
    let keys = Claims::new().shares("controllers/a").needs("controllers/a");
    hold(&registry, "keys/1", keys).unwrap();
}

#[test]
fn one_of_two_keys_is_enough_and_both_are_in_use() {
    let registry = Arc::new(Registry::default());
    let lun = || Claims::new().needs_either("targets/a", "controllers/a");
    let error = hold(&registry, "luns/1", lun()).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    for there in ["targets/a", "controllers/a"] {
        let its = Claims::new().owns(there);
        hold(&registry, there, its).unwrap();
        hold(&registry, "luns/1", lun()).unwrap();
        assert_eq!(registry.users_of(&name(there)), [name("luns/1")]);
        registry.release(&name("luns/1"));
        registry.release(&name(there));
    }
}
