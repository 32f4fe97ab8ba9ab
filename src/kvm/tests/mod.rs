//! The client against a monitor that the test plays, command by command.

mod again;
mod connection;
mod peer;
mod plug;
mod unplug;
