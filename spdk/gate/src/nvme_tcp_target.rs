//! NVMe/TCP as target: the PDUs that a host may send, and when.
