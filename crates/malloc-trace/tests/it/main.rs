//! The integration tests of `malloc-trace`.

mod codec;
mod flawed;
mod generate;
mod record;
mod replay;
mod shadow;
mod shipped;
