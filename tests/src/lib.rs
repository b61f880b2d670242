//! What Gantry's scenarios share. The scenarios themselves are in `tests/tests/`.

pub mod corpus;
