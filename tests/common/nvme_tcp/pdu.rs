//! NVMe/TCP PDUs built byte by byte: valid by default, and every field can be overridden. Layouts:
//! NVMe/TCP transport specification 1.0c, section 3.6.

/// PDU types.
pub mod kind {
    /// Initialize connection request.
    pub const IC_REQ: u8 = 0x00;
    /// Initialize connection response.
    pub const IC_RESP: u8 = 0x01;
    /// H2CTermReq: the host terminates the connection with a reason.
    pub const H2C_TERM_REQ: u8 = 0x02;
    /// C2HTermReq: the target terminates the connection with a reason.
    pub const C2H_TERM_REQ: u8 = 0x03;
    /// Command capsule.
    pub const CAPSULE_CMD: u8 = 0x04;
    /// Response capsule.
    pub const CAPSULE_RESP: u8 = 0x05;
    /// H2CData.
    pub const H2C_DATA: u8 = 0x06;
    /// C2HData.
    pub const C2H_DATA: u8 = 0x07;
    /// R2T: the target requests data.
    pub const R2T: u8 = 0x09;
}

/// Flags of the common header.
pub mod flag {
    /// A header digest follows the header.
    pub const HDGST: u8 = 1;
    /// A data digest follows the data.
    pub const DDGST: u8 = 2;
    /// Marks the last data PDU of a transfer.
    pub const LAST: u8 = 4;
    /// C2HData that implies a successful completion.
    pub const SUCCESS: u8 = 8;
}

/// The digests in use on a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digests {
    /// Header digest.
    pub header: bool,
    /// Data digest.
    pub data: bool,
}

impl Digests {
    /// No digests.
    pub const OFF: Self = Self {
        header: false,
        data: false,
    };
    /// Data digest only.
    pub const DATA: Self = Self {
        header: false,
        data: true,
    };
    /// Header and data digest.
    pub const BOTH: Self = Self {
        header: true,
        data: true,
    };
}

/// A PDU to send. `bytes` computes the valid value for every field that is `None`.
#[derive(Debug, Clone, Default)]
pub struct Pdu {
    /// The PDU type, one of `kind`.
    pub kind: u8,
    /// Flags other than those of the digests.
    pub flags: u8,
    /// The header without the common header.
    pub header: Vec<u8>,
    /// Padding bytes between header (with digest) and data.
    pub padding: usize,
    /// The data.
    pub data: Vec<u8>,
    /// Overrides the header length.
    pub hlen: Option<u8>,
    /// Overrides the PDU data offset.
    pub pdo: Option<u8>,
    /// Overrides the PDU length.
    pub plen: Option<u32>,
    /// Overrides the data digest.
    pub data_digest: Option<u32>,
}

impl Pdu {
    /// Builds an ICReq that requests these digests.
    pub fn ic_req(digests: Digests) -> Self {
        let mut header = vec![0; 120];
        header[3] = u8::from(digests.header) | u8::from(digests.data) << 1;
        Self {
            kind: kind::IC_REQ,
            header,
            ..Self::default()
        }
    }

    /// Builds a command capsule; `data` is its in-capsule data, if any.
    pub fn capsule(command: Command, data: &[u8]) -> Self {
        Self {
            kind: kind::CAPSULE_CMD,
            header: command.0.to_vec(),
            data: data.to_vec(),
            ..Self::default()
        }
    }

    /// Builds an H2CData PDU that answers an R2T, with the LAST flag.
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

    /// Builds an H2CTermReq with this fatal error status and the offending PDU's header.
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

    /// Overrides DATAL of an H2CData.
    pub fn with_datal(mut self, datal: u32) -> Self {
        self.header[8..12].copy_from_slice(&datal.to_le_bytes());
        self
    }

    /// Sets the flags.
    pub fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// Overrides the PDU data offset.
    pub fn with_pdo(mut self, pdo: u8) -> Self {
        self.pdo = Some(pdo);
        self
    }

    /// Overrides the PDU length.
    pub fn with_plen(mut self, plen: u32) -> Self {
        self.plen = Some(plen);
        self
    }

    /// Overrides the header length.
    pub fn with_hlen(mut self, hlen: u8) -> Self {
        self.hlen = Some(hlen);
        self
    }

    /// Encodes the PDU with these digests.
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

/// How a command's data is transferred.
#[derive(Debug, Clone, Copy)]
pub enum Sgl {
    /// No data.
    None,
    /// In-capsule data of this length.
    InCapsule(u32),
    /// A transport SGL: R2T and data PDUs, this length.
    Transport(u32),
}

/// A submission queue entry.
#[derive(Debug, Clone, Copy)]
pub struct Command(pub [u8; 64]);

impl Command {
    /// A command with this opcode and command ID.
    pub fn new(opcode: u8, cid: u16) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = opcode;
        // PSDT: SGL, mandatory in NVMe over Fabrics.
        bytes[1] = 0x40;
        Self(bytes).put(2, &cid.to_le_bytes())
    }

    /// A Fabrics command of this type.
    pub fn fabrics(fctype: u8, cid: u16) -> Self {
        Self::new(0x7f, cid).put(4, &[fctype])
    }

    /// A Connect for queue `qid` with `sqsize` + 1 entries; `sgl` describes its 1 KiB of data.
    pub fn connect(cid: u16, qid: u16, sqsize: u16, sgl: Sgl) -> Self {
        let command = Self::fabrics(1, cid).put(42, &qid.to_le_bytes());
        command.put(44, &sqsize.to_le_bytes()).sgl(sgl)
    }

    /// Property Set, 32 bits.
    pub fn property_set(cid: u16, offset: u32, value: u32) -> Self {
        let command = Self::fabrics(0, cid).put(44, &offset.to_le_bytes());
        command.put(48, &value.to_le_bytes())
    }

    /// Property Get, 32 bits.
    pub fn property_get(cid: u16, offset: u32) -> Self {
        Self::fabrics(4, cid).put(44, &offset.to_le_bytes())
    }

    /// Read (2), Write (1) or Compare (5) of blocks.
    pub fn io(opcode: u8, cid: u16, nsid: u32, lba: u64, blocks: u16) -> Self {
        let command = Self::new(opcode, cid).nsid(nsid);
        let command = command.put(40, &lba.to_le_bytes());
        command.put(48, &blocks.wrapping_sub(1).to_le_bytes())
    }

    /// Dataset Management (NVM command set, 3.2.3) that deallocates ranges, each of a first block and a number of blocks;
    /// returns the command and its data, which is in the capsule.
    pub fn deallocate(cid: u16, nsid: u32, ranges: &[(u64, u32)]) -> (Self, Vec<u8>) {
        const DEALLOCATE: u32 = 1 << 2;
        let range = |(first, blocks): &(u64, u32)| {
            let mut range = vec![0; 4];
            range.extend(blocks.to_le_bytes());
            range.extend(first.to_le_bytes());
            range
        };
        let list: Vec<u8> = ranges.iter().flat_map(range).collect();
        let length = u32::try_from(list.len()).expect("4 KiB at most");
        let last = u32::try_from(ranges.len() - 1).expect("256 ranges at most");
        let command = Self::new(0x09, cid).nsid(nsid).cdw(10, last);
        let command = command.cdw(11, DEALLOCATE);
        (command.sgl(Sgl::InCapsule(length)), list)
    }

    /// Sets the namespace ID.
    pub fn nsid(self, nsid: u32) -> Self {
        self.put(4, &nsid.to_le_bytes())
    }

    /// Sets the FUSE bits: 1 first, 2 second.
    pub fn fuse(mut self, fuse: u8) -> Self {
        self.0[1] |= fuse;
        self
    }

    /// Sets the SGL.
    pub fn sgl(self, sgl: Sgl) -> Self {
        let (length, identifier) = match sgl {
            Sgl::None => (0, 0),
            Sgl::InCapsule(length) => (length, 0x01),
            Sgl::Transport(length) => (length, 0x5a),
        };
        self.put(32, &u32::to_le_bytes(length))
            .put(39, &[identifier])
    }

    /// Sets a command dword (10 to 15).
    pub fn cdw(self, dword: usize, value: u32) -> Self {
        self.put(dword * 4, &value.to_le_bytes())
    }

    /// Overwrites bytes at an offset.
    pub fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Returns the command ID.
    pub fn cid(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }
}

/// Builds Connect's 1 KiB of data.
pub fn connect_data(hostid: [u8; 16], cntlid: u16, subnqn: &str, hostnqn: &str) -> Vec<u8> {
    let mut data = vec![0; 1024];
    data[..16].copy_from_slice(&hostid);
    data[16..18].copy_from_slice(&cntlid.to_le_bytes());
    data[256..256 + subnqn.len()].copy_from_slice(subnqn.as_bytes());
    data[512..512 + hostnqn.len()].copy_from_slice(hostnqn.as_bytes());
    data
}

/// CRC-32C, the digest of NVMe/TCP.
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
