//! The fields of the packets in question, as the rules look them up.

use super::{Axis, NeedsFixed, Value, Walk, port_value};
use netpolc_bundle::nft::Field;
use netpolc_bundle::nft::run::mask;

/// A field of the packets in question.
pub(super) enum Side {
    Known(Value),
    /// The end that ranges, cut to a prefix length.
    Axis(Option<u8>),
}

impl Side {
    pub(super) fn known(&self) -> Option<Value> {
        match self {
            Side::Known(value) => Some(*value),
            Side::Axis(_) => None,
        }
    }
}

impl Walk<'_> {
    pub(super) fn sides(&self, fields: &[Field]) -> Result<Vec<Side>, NeedsFixed> {
        fields.iter().map(|f| self.side(f)).collect()
    }

    /// The value of a field, or the prefix length that the axis is cut to.
    fn side(&self, field: &Field) -> Result<Side, NeedsFixed> {
        let (end, len) = match field {
            Field::Saddr => (Axis::Src, None),
            Field::Daddr => (Axis::Dst, None),
            Field::SaddrPrefix(len) => (Axis::Src, Some(*len)),
            Field::DaddrPrefix(len) => (Axis::Dst, Some(*len)),
            Field::L4Proto => return Ok(Side::Known(Value::Proto(self.case.protocol.number()))),
            Field::Dport => return Ok(Side::Known(port_value(self.case.protocol, self.case.port))),
            Field::Iifname => return Ok(Side::Known(Value::PodInterface)),
        };
        if end == self.case.axis {
            return Ok(Side::Axis(len));
        }
        let fixed = self.case.fixed.ok_or(NeedsFixed)?;
        Ok(Side::Known(Value::Addr(len.map_or(fixed, |len| fixed & mask(self.case.family, len)))))
    }
}
