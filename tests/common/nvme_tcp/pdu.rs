//! PDUs of NVMe/TCP, byte by byte: a right one is the default, every field of it can be made wrong.
//! Layouts: NVMe/TCP transport specification 1.0c, section 3.6.

/// PDU types.
pub mod kind {
    /// Initialize connection request.
    pub const IC_REQ: u8 = 0x00;
    /// Initialize connection response.
    pub const IC_RESP: u8 = 0x01;
    /// The host ends the connection and says why.
    pub const H2C_TERM_REQ: u8 = 0x02;
    /// The target ends the connection and says why.
    pub const C2H_TERM_REQ: u8 = 0x03;
    /// A command.
    pub const CAPSULE_CMD: u8 = 0x04;
    /// A completion.
    pub const CAPSULE_RESP: u8 = 0x05;
    /// Data of the host.
    pub const H2C_DATA: u8 = 0x06;
    /// Data of the target.
    pub const C2H_DATA: u8 = 0x07;
    /// The target asks for data.
    pub const R2T: u8 = 0x09;
}

/// Flags of the common header.
pub mod flag {
    /// A header digest follows the header.
    pub const HDGST: u8 = 1;
    /// A data digest follows the data.
    pub const DDGST: u8 = 2;
    /// The last data PDU of a transfer.
    pub const LAST: u8 = 4;
    /// Data that also stands for a successful completion.
    pub const SUCCESS: u8 = 8;
}

/// Digests that both ends agreed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digests {
    /// Of headers.
    pub header: bool,
    /// Of data.
    pub data: bool,
}

impl Digests {
    /// None.
    pub const OFF: Self = Self {
        header: false,
        data: false,
    };
    /// Of data alone.
    pub const DATA: Self = Self {
        header: false,
        data: true,
    };
    /// Both.
    pub const BOTH: Self = Self {
        header: true,
        data: true,
    };
}

/// One PDU to send. `bytes` fills in what is `None` as the specification demands.
#[derive(Debug, Clone, Default)]
pub struct Pdu {
    /// One of `kind`.
    pub kind: u8,
    /// Flags beside those of digests.
    pub flags: u8,
    /// The header after the common one.
    pub header: Vec<u8>,
    /// Bytes between header (with digest) and data.
    pub padding: usize,
    /// Data of the PDU.
    pub data: Vec<u8>,
    /// In place of the right header length.
    pub hlen: Option<u8>,
    /// In place of the right data offset.
    pub pdo: Option<u8>,
    /// In place of the right length.
    pub plen: Option<u32>,
    /// In place of the right digest of the data.
    pub data_digest: Option<u32>,
}

impl Pdu {
    /// ICReq that asks for these digests.
    pub fn ic_req(digests: Digests) -> Self {
        let mut header = vec![0; 120];
        header[3] = u8::from(digests.header) | u8::from(digests.data) << 1;
        Self {
            kind: kind::IC_REQ,
            header,
            ..Self::default()
        }
    }

    /// A command, with data inside its capsule unless that is empty.
    pub fn capsule(command: Command, data: &[u8]) -> Self {
        Self {
            kind: kind::CAPSULE_CMD,
            header: command.0.to_vec(),
            data: data.to_vec(),
            ..Self::default()
        }
    }

    /// Data for an R2T, as the last part of it.
    pub fn h2c_data(cccid: u16, ttag: u16, offset: u32, data: &[u8]) -> Self {
        let length = u32::try_from(data.len()).expect("a PDU's length");
        let mut header = [cccid.to_le_bytes(), ttag.to_le_bytes()].concat();
        header.extend(offset.to_le_bytes());
        header.extend(length.to_le_bytes());
        header.extend([0; 4]);
        Self {
            kind: kind::H2C_DATA,
            flags: flag::LAST,
            header,
            data: data.to_vec(),
            ..Self::default()
        }
    }

    /// H2CTermReq with this fatal error status, and the header that it is about.
    pub fn h2c_term_req(fes: u16, data: &[u8]) -> Self {
        let mut header = fes.to_le_bytes().to_vec();
        header.resize(16, 0);
        Self {
            kind: kind::H2C_TERM_REQ,
            header,
            data: data.to_vec(),
            ..Self::default()
        }
    }

    /// With another length in the header of an H2CData.
    pub fn with_datal(mut self, datal: u32) -> Self {
        self.header[8..12].copy_from_slice(&datal.to_le_bytes());
        self
    }

    /// With these flags.
    pub fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// With this PDU data offset.
    pub fn with_pdo(mut self, pdo: u8) -> Self {
        self.pdo = Some(pdo);
        self
    }

    /// With this length of the PDU.
    pub fn with_plen(mut self, plen: u32) -> Self {
        self.plen = Some(plen);
        self
    }

    /// With this header length.
    pub fn with_hlen(mut self, hlen: u8) -> Self {
        self.hlen = Some(hlen);
        self
    }

    /// What goes over the wire.
    pub fn bytes(&self, digests: Digests) -> Vec<u8> {
        let digested = matches!(self.kind, kind::CAPSULE_CMD | kind::H2C_DATA);
        let header_digest = digests.header && digested;
        let data_digest = digests.data && digested && !self.data.is_empty();
        let hlen = 8 + self.header.len();
        let begin = hlen + if header_digest { 4 } else { 0 } + self.padding;
        let plen = begin + self.data.len() + if data_digest { 4 } else { 0 };
        let flags = self.flags | u8::from(header_digest) | u8::from(data_digest) << 1;
        let pdo = if self.data.is_empty() || !digested {
            0
        } else {
            u8::try_from(begin).expect("a small offset")
        };
        let right_hlen = u8::try_from(hlen).expect("a small header");
        let right_plen = u32::try_from(plen).expect("a PDU's length");
        let mut bytes = vec![
            self.kind,
            flags,
            self.hlen.unwrap_or(right_hlen),
            self.pdo.unwrap_or(pdo),
        ];
        bytes.extend(self.plen.unwrap_or(right_plen).to_le_bytes());
        bytes.extend(&self.header);
        if header_digest {
            bytes.extend(crc32c(&bytes).to_le_bytes());
        }
        bytes.resize(begin, 0);
        bytes.extend(&self.data);
        if data_digest {
            let mut padded = self.data.clone();
            padded.resize(self.data.len().next_multiple_of(4), 0);
            let digest = self.data_digest.unwrap_or_else(|| crc32c(&padded));
            bytes.extend(digest.to_le_bytes());
        }
        bytes
    }
}

/// How a command says where its data is.
#[derive(Debug, Clone, Copy)]
pub enum Sgl {
    /// Nowhere.
    None,
    /// Inside the capsule, this long.
    InCapsule(u32),
    /// By R2T and data PDUs, this long.
    Transport(u32),
}

/// A submission queue entry.
#[derive(Debug, Clone, Copy)]
pub struct Command(pub [u8; 64]);

impl Command {
    /// With this opcode and command ID.
    pub fn new(opcode: u8, cid: u16) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = opcode;
        // SGLs, as NVMe over Fabrics demands.
        bytes[1] = 0x40;
        Self(bytes).put(2, &cid.to_le_bytes())
    }

    /// A fabrics command of this type.
    pub fn fabrics(fctype: u8, cid: u16) -> Self {
        Self::new(0x7f, cid).put(4, &[fctype])
    }

    /// Connect of a queue with `sqsize` entries beyond the first, its 1 KiB of data as `sgl` says.
    pub fn connect(cid: u16, qid: u16, sqsize: u16, sgl: Sgl) -> Self {
        let command = Self::fabrics(1, cid).put(42, &qid.to_le_bytes());
        command.put(44, &sqsize.to_le_bytes()).sgl(sgl)
    }

    /// Sets a 32-bit property.
    pub fn property_set(cid: u16, offset: u32, value: u32) -> Self {
        let command = Self::fabrics(0, cid).put(44, &offset.to_le_bytes());
        command.put(48, &value.to_le_bytes())
    }

    /// Asks for a 32-bit property.
    pub fn property_get(cid: u16, offset: u32) -> Self {
        Self::fabrics(4, cid).put(44, &offset.to_le_bytes())
    }

    /// Read (2), write (1) or compare (5) of blocks.
    pub fn io(opcode: u8, cid: u16, nsid: u32, lba: u64, blocks: u16) -> Self {
        let command = Self::new(opcode, cid).nsid(nsid);
        let command = command.put(40, &lba.to_le_bytes());
        command.put(48, &blocks.wrapping_sub(1).to_le_bytes())
    }

    /// On this namespace.
    pub fn nsid(self, nsid: u32) -> Self {
        self.put(4, &nsid.to_le_bytes())
    }

    /// With these FUSE bits: 1 first, 2 second.
    pub fn fuse(mut self, fuse: u8) -> Self {
        self.0[1] |= fuse;
        self
    }

    /// With data as this says.
    pub fn sgl(self, sgl: Sgl) -> Self {
        let (length, identifier) = match sgl {
            Sgl::None => (0, 0),
            Sgl::InCapsule(length) => (length, 0x01),
            Sgl::Transport(length) => (length, 0x5a),
        };
        self.put(32, &u32::to_le_bytes(length))
            .put(39, &[identifier])
    }

    /// With this command dword (10 to 15).
    pub fn cdw(self, dword: usize, value: u32) -> Self {
        self.put(dword * 4, &value.to_le_bytes())
    }

    /// With these bytes there.
    pub fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Its command ID.
    pub fn cid(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }
}

/// The 1 KiB that Connect carries.
pub fn connect_data(hostid: [u8; 16], cntlid: u16, subnqn: &str, hostnqn: &str) -> Vec<u8> {
    let mut data = vec![0; 1024];
    data[..16].copy_from_slice(&hostid);
    data[16..18].copy_from_slice(&cntlid.to_le_bytes());
    data[256..256 + subnqn.len()].copy_from_slice(subnqn.as_bytes());
    data[512..512 + hostnqn.len()].copy_from_slice(hostnqn.as_bytes());
    data
}

/// CRC-32C as NVMe/TCP's digests have it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !bytes.iter().fold(!0, |sum: u32, byte| {
        sum >> 8 ^ TABLE[usize::from(sum.to_le_bytes()[0] ^ byte)]
    })
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut sum, mut bit) = (n as u32, 0);
        while bit < 8 {
            sum = if sum & 1 == 1 {
                sum >> 1 ^ 0x82f6_3b78
            } else {
                sum >> 1
            };
            bit += 1;
        }
        table[n] = sum;
        n += 1;
    }
    table
}
