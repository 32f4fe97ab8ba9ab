use crate::vhost_user::turn::{BYTES, REQUESTS, Turn};

/// Takes requests of this size until the turn is spent; returns how many.
fn fill(turn: &mut Turn, bytes: u64) -> u32 {
    let mut taken = 0;
    while !turn.is_spent() {
        turn.took(bytes);
        taken += 1;
    }
    taken
}

#[test]
fn a_turn_has_a_bound_of_requests_and_one_of_bytes() {
    assert!(!Turn::new().is_spent() && !Turn::new().has_work());
    for (bytes, expected) in [
        (0, REQUESTS),
        (4096, REQUESTS),
        (8192, REQUESTS),
        (16_384, 64),
        (1 << 20, 1),
        (16 << 20, 1),
        (u64::MAX, 1),
    ] {
        let mut turn = Turn::new();
        assert_eq!(fill(&mut turn, bytes), expected, "{bytes} bytes each");
        assert!(turn.has_work());
    }
    let mut turn = Turn::new();
    turn.took(BYTES - 1);
    assert!(!turn.is_spent());
    turn.took(u64::MAX);
    assert!(turn.is_spent());
}

#[test]
fn no_ring_is_the_first_to_be_polled_twice_in_a_row_if_a_turn_ends_early() {
    let mut spent = Turn::new();
    spent.took(BYTES);
    for rings in 1..6 {
        for first in 0..rings {
            assert_eq!(Turn::new().next_first(first, rings, rings), first);
            for polled in 1..=rings {
                let next = spent.next_first(first, polled, rings);
                assert!(next < rings);
                let expected = if polled < rings { polled } else { 1 };
                assert_eq!(next, (first + expected) % rings);
            }
        }
    }
    assert_eq!(spent.next_first(3, 0, 0), 0, "all rings have gone");
}

/// Two rings that always have work, of large and of small requests: both are served.
#[test]
fn a_ring_of_large_requests_leaves_a_turn_to_its_neighbors() {
    let sizes = [1_u64 << 20, 4096, 4096];
    let mut served = [0_u32; 3];
    let mut first = 0;
    for _ in 0..30 {
        let mut turn = Turn::new();
        let mut polled = 0;
        for at in 0..sizes.len() {
            if turn.is_spent() {
                break;
            }
            let ring = (first + at) % sizes.len();
            for _ in 0..32 {
                if turn.is_spent() {
                    break;
                }
                turn.took(sizes[ring]);
                served[ring] += 1;
            }
            polled += 1;
        }
        first = turn.next_first(first, polled, sizes.len());
    }
    assert!(served.iter().all(|count| *count >= 20), "{served:?}");
}
