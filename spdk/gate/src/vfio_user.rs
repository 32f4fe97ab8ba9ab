//! vfio-user: DMA ranges, PRPs, SGLs and queues of a virtual machine.
