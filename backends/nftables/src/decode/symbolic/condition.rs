//! What the conditions of a rule ask of all packets in question at once.

use super::program::SetId;
use super::{Axis, Case, NeedsFixed, Walk};
use netpolc_bundle::nft::{Field, Match};
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::{Atoms, Conn, Kind};

impl Walk<'_> {
    /// Whether a condition holds that is about no address; `None` if it is about one.
    pub(super) fn holds(&self, condition: &Match, set: Option<SetId>) -> Option<bool> {
        let Case { protocol, kind, .. } = self.case;
        Some(match condition {
            Match::InSet(..) if set.is_none() => false,
            // The loader fills this set with the interfaces of all pods.
            Match::InSet(fields, _) if fields == &[Field::Iifname] && kind.spoofed() => true,
            Match::InSet(..) | Match::Unbound => return None,
            Match::L4Proto(number) => protocol.number() == *number,
            Match::NotEstablished => kind.conn() != Conn::Established,
            Match::NotTracked => kind.conn() == Conn::Untracked,
            Match::TcpNotSyn => self.begins_nothing(Protocol::TCP),
            Match::SctpNotInit => self.begins_nothing(Protocol::SCTP),
            Match::ReversePathFails => kind.spoofed() || kind.asymmetric(),
            Match::NeighbourDiscovery => kind == Kind::NeighbourDiscovery,
        })
    }

    /// Keeps the packets that fulfil a condition about addresses.
    pub(super) fn condition(
        &mut self,
        condition: &Match,
        set: Option<SetId>,
        state: &mut BitSet,
    ) -> Result<(), NeedsFixed> {
        match (condition, set) {
            (Match::InSet(fields, _), _) if fields == &[Field::Iifname] => return self.bound(state, true),
            (Match::Unbound, _) => return self.bound(state, false),
            (Match::InSet(fields, _), Some(set)) => {
                let members = self.members(fields, set)?;
                state.and_with(&members);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the packets are of a protocol, and not the first ones of a connection.
    fn begins_nothing(&self, protocol: Protocol) -> bool {
        !self.case.kind.opens() && self.case.protocol == protocol
    }

    /// Keeps the packets that come from the interface of the pod that has their source, or all others.
    fn bound(&mut self, state: &mut BitSet, keep: bool) -> Result<(), NeedsFixed> {
        let honest = !self.case.kind.spoofed() && !self.case.kind.asymmetric();
        let all = match self.case.axis {
            Axis::Src if honest => {
                let locals = self.run.locals.get_or_insert_with(|| locals(self.atoms));
                match keep {
                    true => state.and_with(locals),
                    false => state.remove_all(locals),
                }
                return Ok(());
            }
            Axis::Dst if honest => self.atoms.local(self.atoms.atom(self.case.fixed.ok_or(NeedsFixed)?)),
            Axis::Src | Axis::Dst => false,
        };
        if all != keep {
            *state = BitSet::empty(state.len());
        }
        Ok(())
    }
}

/// The atoms that live on the node.
fn locals(atoms: &Atoms) -> BitSet {
    (0..atoms.len()).map(|atom| (atom, atoms.local(atom))).collect()
}
