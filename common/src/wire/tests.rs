//! Headers against an independent library and against random bytes.
