//! NVMe/TCP as initiator: the PDUs that a peer may send, and when.
