//! Arms that need software which is not everywhere.

use std::any::Any;

use anyhow::{Result, bail};

use super::{Arm, Pair};

/// Makes the arm of this name, and what keeps it alive.
pub(super) fn make(name: &str, _pair: &Pair) -> Result<(Box<dyn Any>, Arm)> {
    bail!("--with {name}: no such arm: 'docker' and 'ovs' are valid")
}
