//! What proxyd asks of the machine it runs on. I/O: rtnetlink.

pub mod addresses;
