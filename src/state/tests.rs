//! Conformance tests of the store interface, run against each engine.

use super::*;

pub(super) fn entry(key: &str, revision: u64) -> Entry {
    Entry {
        key: key.to_owned(),
        kind: "opi_api.storage.v1.NullVolume".to_owned(),
        created: revision,
        revision,
        deleting: false,
        wanted: key.as_bytes().to_vec(),
        object: vec![7; 40],
    }
}

pub(super) fn put(key: &str, revision: u64) -> Change {
    Change::Put(entry(key, revision))
}

pub(super) fn removal(key: &str, revision: u64) -> Change {
    Change::Remove {
        key: key.to_owned(),
        revision,
    }
}

fn expecting(key: &str, revision: Option<u64>) -> Expected {
    vec![(key.to_owned(), revision)]
}

/// Checks the guarantees that a single process can observe.
pub(super) async fn keeps_its_promises(store: &dyn Store) {
    let mut watch = store.watch(None).unwrap();
    let new = expecting("nullVolumes/b", None);
    store
        .commit(vec![put("nullVolumes/b", 1)], new.clone())
        .await
        .unwrap();
    let again = store.commit(vec![put("nullVolumes/b", 2)], new).await;
    assert_eq!(
        again,
        Err(Error::Conflict {
            key: "nullVolumes/b".to_owned(),
            expected: None,
            found: Some(1)
        })
    );
    // Atomicity: a commit with one conflict applies none of its changes.
    let both = vec![put("nullVolumes/a", 3), put("nullVolumes/b", 4)];
    let stale = expecting("nullVolumes/b", Some(9));
    assert!(store.commit(both.clone(), stale).await.is_err());
    assert_eq!(store.scan("").await, Ok(vec![entry("nullVolumes/b", 1)]));
    assert_eq!(store.revision(), 1);
    store
        .commit(both, expecting("nullVolumes/b", Some(1)))
        .await
        .unwrap();
    store
        .commit(
            vec![put("nullVolumesX/a", 5), put("aioVolumes/z", 6)],
            Vec::new(),
        )
        .await
        .unwrap();
    let found = store.scan("nullVolumes/").await;
    assert_eq!(
        found,
        Ok(vec![entry("nullVolumes/a", 3), entry("nullVolumes/b", 4)])
    );
    let keys = store.scan("").await.unwrap();
    let keys: Vec<_> = keys.into_iter().map(|entry| entry.key).collect();
    assert_eq!(
        keys,
        [
            "aioVolumes/z",
            "nullVolumes/a",
            "nullVolumes/b",
            "nullVolumesX/a"
        ]
    );
    store
        .commit(vec![removal("aioVolumes/z", 7)], Vec::new())
        .await
        .unwrap();
    assert_eq!(store.scan("aio").await, Ok(Vec::new()));
    assert_eq!(store.revision(), 7);
    // The history keeps only the last change of each record: 1 and 6 were superseded.
    for revision in [3, 4, 5, 7] {
        assert_eq!(watch.next().await.unwrap().revision(), revision);
    }
    let mut rest = store.watch(Some(6)).unwrap();
    assert_eq!(rest.next().await, Ok(removal("aioVolumes/z", 7)));
}

#[tokio::test]
async fn memory_keeps_the_promises_of_a_store() {
    keeps_its_promises(&Memory::default()).await;
}

#[test]
fn a_record_is_logged_without_what_is_in_it() {
    let mut secret = entry("nvmeSubsystems/s", 1);
    secret.wanted = b"NVMeTLSkey".to_vec();
    let text = format!("{:?}", Change::Put(secret));
    assert!(
        text.contains("nvmeSubsystems/s") && !text.contains("78, 86"),
        "{text}"
    );
}
