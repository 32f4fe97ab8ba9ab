//! Reads single fields of an encoded protobuf message without decoding the rest.

/// The bytes of the first length-delimited field (string or message) with this number. `None` if the available part of
/// the message has none, or only a part of it.
pub(super) fn field(mut message: &[u8], number: u32) -> Option<&[u8]> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let wanted = tag >> 3 == u64::from(number);
        match tag & 7 {
            0 => {
                varint(&mut message)?;
            }
            1 => skip(&mut message, 8).map(|_| ())?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let value = skip(&mut message, length)?;
                if wanted {
                    return Some(value);
                }
            }
            5 => skip(&mut message, 4).map(|_| ())?,
            _ => return None,
        }
    }
    None
}

/// The same as text; `None` if empty.
pub(super) fn text(message: &[u8], number: u32) -> Option<String> {
    let value = field(message, number)?;
    (!value.is_empty()).then(|| String::from_utf8_lossy(value).into_owned())
}

fn skip<'a>(message: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (value, rest) = message.split_at_checked(length)?;
    *message = rest;
    Some(value)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::storage::{CreateNullVolumeRequest, NullVolume, UpdateNullVolumeRequest};
    use prost::Message;

    fn volume(name: &str) -> Option<NullVolume> {
        Some(NullVolume {
            name: name.to_owned(),
            block_size: -1,
            blocks_count: i64::MAX,
            ..Default::default()
        })
    }

    #[test]
    fn fields_are_found_among_others_and_in_messages() {
        let update = UpdateNullVolumeRequest {
            null_volume: volume("nullVolumes/a"),
            allow_missing: true,
            ..Default::default()
        };
        let bytes = update.encode_to_vec();
        let inside = field(&bytes, 1).expect("the volume");
        assert_eq!(text(inside, 1).as_deref(), Some("nullVolumes/a"));
        let create = CreateNullVolumeRequest {
            null_volume: volume(""),
            null_volume_id: "b".to_owned(),
        };
        let bytes = create.encode_to_vec();
        assert!(
            (1..4).any(|number| text(&bytes, number).as_deref() == Some("b")),
            "{bytes:?}"
        );
        assert_eq!(text(field(&bytes, 1).expect("the volume"), 1), None);
    }

    #[test]
    fn what_is_cut_off_or_no_message_has_no_fields() {
        let bytes = volume("nullVolumes/a").expect("a volume").encode_to_vec();
        for cut in 0..bytes.len().min(14) {
            assert_eq!(field(&bytes[..cut], 1), None, "{cut}");
        }
        for bytes in [
            &[
                0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ][..],
            &[0x0b],
            &[0x0f, 1],
            &[0x0a, 5, 1],
            &[0xff; 20],
        ] {
            assert_eq!(field(bytes, 1), None, "{bytes:?}");
        }
    }
}
