//! Merging and inspecting models that are built here, and those of the oracle.

mod failures;
mod fixture;
mod inspecting;
mod laws;
mod merging;
mod oracle;
mod tied;
