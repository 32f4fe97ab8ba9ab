//! Tests of the state that SPDK restores.

use super::*;

const HOSTS: [&str; 2] = [
    "11111111-1111-1111-1111-111111111111",
    "22222222-2222-2222-2222-222222222222",
];
const VOLUME: &str = "33333333-3333-3333-3333-333333333333";

fn reservation(kind: u8, key: u64, holder: &str) -> Reservation {
    let registrants = HOSTS.iter().zip(1..);
    Reservation {
        bdev: VOLUME.into(),
        kind,
        key,
        holder: holder.into(),
        registrants: registrants
            .map(|(host, key)| Registrant {
                host: (*host).into(),
                key,
            })
            .collect(),
    }
}

fn filled(reservation: &Reservation) -> Result<sys::spdk_nvmf_reservation_info, Error> {
    // SAFETY: a struct of integers and arrays of integers, for which all zero is valid.
    let mut info = unsafe { std::mem::zeroed() };
    reservation.fill(&mut info).map(|()| info)
}

#[test]
fn what_spdk_has_comes_back_as_it_was() {
    for reservation in [reservation(0, 0, ""), reservation(3, 2, HOSTS[1])] {
        let info = filled(&reservation).unwrap();
        assert_eq!(Reservation::of(&info).as_ref(), Some(&reservation));
    }
}

#[test]
fn a_reservation_of_all_registrants_is_held_by_those_who_are_left() {
    let info = filled(&reservation(6, 99, "")).unwrap();
    assert_eq!((info.crkey, info.num_regs), (1, 2));
}

#[test]
fn what_does_not_fit_together_is_not_given_to_spdk() {
    let mut none = reservation(0, 0, "");
    none.registrants.clear();
    let mut many = reservation(0, 0, "");
    many.registrants = vec![many.registrants[0].clone(); MOST + 1];
    let mut long = reservation(0, 0, "");
    long.registrants[0].host.push('1');
    let bad = [
        none,
        many,
        long,
        reservation(7, 1, HOSTS[0]),
        reservation(1, 1, VOLUME),
        reservation(1, 2, HOSTS[0]),
        reservation(2, 0, ""),
    ];
    for reservation in bad {
        let error = filled(&reservation).err().expect("it is refused");
        assert_eq!(error.errno.0, libc::EINVAL, "{reservation:?}");
    }
}

#[test]
fn nothing_is_kept_that_does_not_persist() {
    let mut info = filled(&reservation(1, 1, HOSTS[0])).unwrap();
    info.ptpl_activated = 0;
    assert_eq!(Reservation::of(&info), None);
}
