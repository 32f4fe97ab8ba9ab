//! vhost-user: messages, memory tables, rings and descriptor chains of a virtual machine.
