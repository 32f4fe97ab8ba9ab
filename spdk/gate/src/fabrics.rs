//! NVMe over Fabrics, behind the transport: Connect, identities, and the length of each command's data.
