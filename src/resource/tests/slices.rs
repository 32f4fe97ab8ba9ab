//! Tests of slices of a collection.

use super::super::*;
use super::{World, of};

#[tokio::test]
async fn slices_one_after_the_other_have_each_object_once_and_end() {
    let world = World::new();
    for id in ["a", "b", "c", "d", "e", "f", "g"] {
        world.volume(id, of(512, 64)).await.unwrap();
    }
    let mut slice = Slice {
        after: None,
        most: 3,
    };
    let mut sizes = Vec::new();
    let mut seen = String::new();
    loop {
        let (objects, after) = world.volumes.slice(&slice);
        sizes.push(objects.len());
        objects
            .iter()
            .for_each(|(name, _)| seen.push_str(name.id()));
        match after {
            Some(_) => slice.after = after,
            None => break,
        }
        // The key to continue after may be deleted between two slices.
        if sizes.len() == 1 {
            world.delete("volumes/c").await.unwrap();
        }
    }
    assert_eq!((seen.as_str(), sizes), ("abcdefg", vec![3, 3, 1]));

    let (all, after) = world.volumes.slice(&Slice::ALL);
    assert_eq!((all.len(), after), (6, None));
    slice = Slice {
        after: None,
        most: 6,
    };
    assert_eq!(world.volumes.slice(&slice).1, None, "there is nothing more");
    assert_eq!(world.volumes.lost(&Slice::ALL), (vec![], None));
}
