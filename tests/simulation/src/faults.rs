//! What goes wrong, and how it is healed. Everything that lasts ends by itself, at the latest when all is healed.

use crate::{
    Mutation,
    datagrams::Datagrams,
    log::NONE,
    network::{Carrier, End},
    plan::CLIENT,
    world::{Event, HEAL_AT, SECOND, World},
};

/// The kinds of trouble, as the summary counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A bit is changed on the way.
    Flip,
    /// A connection breaks in both directions, at any byte.
    Cut,
    /// One direction ends at any byte, as if its writer had closed it.
    HalfClose,
    /// Two hosts cannot reach each other for a while.
    Partition,
    /// Only one of them can reach the other.
    OneWay,
    /// A program ends and its kernel says so; it starts again.
    Crash,
    /// A machine is gone without a word; it starts again.
    PowerLoss,
    /// A side says that it takes no new streams, and closes when the last one is over.
    Drain,
    /// A program stands still for a while; its kernel does not.
    Freeze,
    /// Applications of a host take no messages for a while: windows starve.
    Pause,
    /// A segment is lost, and what is behind it waits for its repetition.
    Loss,
    /// A link becomes narrow for a while.
    Squeeze,
    /// Many reads get a few bytes only.
    Slices,
    /// More calls at once than a connection takes.
    Burst,
    /// Packets of a datagram link are lost for a while, and repeated.
    PacketLoss,
    /// Packets of a datagram link come twice for a while.
    Duplication,
    /// Packets of a datagram link overtake each other for a while.
    Reordering,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Fault; 17] = [
        Fault::Flip,
        Fault::Cut,
        Fault::HalfClose,
        Fault::Partition,
        Fault::OneWay,
        Fault::Crash,
        Fault::PowerLoss,
        Fault::Drain,
        Fault::Freeze,
        Fault::Pause,
        Fault::Loss,
        Fault::Squeeze,
        Fault::Slices,
        Fault::Burst,
        Fault::PacketLoss,
        Fault::Duplication,
        Fault::Reordering,
    ];

    /// How often each happens, beside the others.
    fn weight(self) -> usize {
        match self {
            Fault::Flip | Fault::Cut | Fault::Loss => 3,
            Fault::PacketLoss | Fault::Duplication | Fault::Reordering => 3,
            Fault::HalfClose | Fault::Partition | Fault::OneWay | Fault::Drain | Fault::Pause => 2,
            _ => 1,
        }
    }
}

impl World {
    /// One fault, and the time of the next.
    pub(crate) fn fault(&mut self) {
        if self.now >= HEAL_AT {
            return;
        }
        let wait = self.random.wait(self.fault_gap).clamp(1_000, 40 * SECOND);
        self.after(wait, Event::Fault);
        let mut number = self.random.below(Fault::ALL.iter().map(|fault| fault.weight()).sum());
        let fault = Fault::ALL.into_iter().find(|fault| {
            let found = number < fault.weight();
            number = number.saturating_sub(fault.weight());
            found
        });
        let Some(fault) = fault else { return };
        if self.strike(fault) {
            self.note("fault", NONE, NONE, 0, fault as u64);
            // A flip counts when its bit is on the wire.
            if fault != Fault::Flip {
                self.report.survived(fault);
            }
        }
    }

    /// A while that is over when all is healed.
    fn until(&mut self, most_seconds: u64) -> u64 {
        let long = self.random.between(1_000, most_seconds * SECOND);
        let wait = if self.random.one_in(2) { long } else { long / 16 };
        (self.now + wait).min(HEAL_AT)
    }

    /// Lets it happen; whether there was something for it to happen to.
    fn strike(&mut self, fault: Fault) -> bool {
        let client = self.random.between(self.servers as u64, self.hosts.len() as u64 - 1) as usize;
        let server = self.random.below(self.servers);
        let host = self.random.below(self.hosts.len());
        let side = self.random.below(2);
        let open: Vec<usize> = (0..self.links.len())
            .rev()
            .take(64)
            .filter(|link| self.links[*link].sides.iter().all(|side| side.open))
            .collect();
        // What a kind of link cannot suffer falls on one that can.
        let only = match fault {
            Fault::HalfClose | Fault::Slices => Some(false),
            Fault::PacketLoss | Fault::Duplication | Fault::Reordering => Some(true),
            _ => None,
        };
        let open: Vec<usize> = open
            .into_iter()
            .filter(|link| only.is_none_or(|only| self.links[*link].carrier.is_datagrams() == only))
            .collect();
        let link = if open.is_empty() { None } else { Some(self.random.pick(&open)) };
        match fault {
            Fault::Flip => {
                let Some(link) = link else { return false };
                let ahead = self.random.pick(&[40, 400, 20_000]);
                let ahead = self.random.between(0, ahead);
                match &mut self.links[link].carrier {
                    Carrier::Bytes(pipes) => {
                        let pipe = &mut pipes[side];
                        pipe.flip_at = pipe.flip_at.or(Some(pipe.written + ahead));
                    }
                    // Each packet has a seal, and one whose seal is broken is as good as lost.
                    Carrier::Datagrams(ways) => {
                        ways[side].spoilt += 1;
                        self.report.survived(Fault::Flip);
                    }
                }
            }
            Fault::Cut | Fault::HalfClose => {
                let Some(link) = link else { return false };
                self.auditor.touch(link);
                let end = if fault == Fault::Cut { End::Reset } else { End::Fin };
                let both = fault == Fault::Cut;
                for side in (0..2).filter(|each| both || *each == side) {
                    match &mut self.links[link].carrier {
                        Carrier::Bytes(pipes) => {
                            let at = pipes[side].cut(self.now, end, &mut self.random);
                            self.at(at, Event::Arrive(link, 1 - side));
                        }
                        Carrier::Datagrams(ways) => {
                            ways[side].close(self.now, 0, &mut self.random);
                            self.launch(link);
                        }
                    }
                }
            }
            Fault::Partition => {
                let until = self.until(30);
                self.block(client, server, until);
                self.block(server, client, until);
            }
            Fault::OneWay => {
                let until = self.until(30);
                let (from, to) = if side == CLIENT { (client, server) } else { (server, client) };
                self.block(from, to, until);
            }
            Fault::Crash | Fault::PowerLoss => {
                if !self.hosts[host].up {
                    return false;
                }
                self.note("crash", host, NONE, 0, fault as u64);
                self.crash(host, fault == Fault::PowerLoss);
                let until = self.until(6);
                self.at(until, Event::Restart(host));
            }
            Fault::Drain => {
                if !self.hosts[host].up || self.hosts[host].frozen_until.is_some() {
                    return false;
                }
                for link in 0..self.links.len() {
                    let Some(side) = (0..2).find(|side| self.links[link].hosts[*side] == host) else {
                        continue;
                    };
                    if let Some(protocol) = &mut self.links[link].sides[side].protocol {
                        protocol.go_away("maintenance");
                        self.auditor.touch(link);
                        self.drain(link, side);
                    }
                }
            }
            Fault::Freeze => {
                if !self.hosts[host].up || self.hosts[host].frozen_until.is_some() {
                    return false;
                }
                let until = self.until(15);
                self.hosts[host].frozen_until = Some(until);
                self.auditor.froze(host);
                self.touch_all(|hosts| hosts.contains(&host));
                self.at(until, Event::Thaw(host));
            }
            Fault::Pause => {
                self.hosts[host].paused = true;
                // A peer that is short of memory gives up streams that stand still.
                self.touch_all(|hosts| hosts.contains(&host));
                let until = self.until(12);
                self.at(until, Event::Resume(host));
            }
            Fault::Loss => {
                let Some(link) = link else { return false };
                let wait = self.random.pick(&[200_000, 400_000, 1_600_000]);
                let at = self.now + wait;
                self.links[link].carrier.path(side).stalled_until = at;
                self.at(at, Event::Arrive(link, 1 - side));
            }
            Fault::Squeeze => {
                let Some(link) = link else { return false };
                for side in 0..2 {
                    self.links[link].carrier.path(side).bytes_per_ms = 100;
                }
                let until = self.until(5);
                self.at(until, Event::Widen(link));
            }
            Fault::Slices => {
                let Some(link) = link else { return false };
                let slice = self.random.between(1, 60) as usize;
                let reads = self.random.between(20, 400) as u32;
                let Some(pipe) = self.links[link].carrier.pipe(side) else { return false };
                pipe.slices = (reads, slice);
            }
            Fault::Burst => {
                if !self.hosts[client].up || self.hosts[client].frozen_until.is_some() {
                    return false;
                }
                for _ in 0..self.random.between(20, 150) {
                    self.begin(client, server, false);
                }
            }
            Fault::PacketLoss | Fault::Duplication | Fault::Reordering => {
                let until = self.until(6);
                let one_in = self.random.pick(&[2, 4, 16]);
                let Some(ways) = link.and_then(|link| self.links[link].carrier.datagrams()) else {
                    return false;
                };
                let trouble = match fault {
                    Fault::PacketLoss => &mut ways[side].loss,
                    Fault::Duplication => &mut ways[side].doubling,
                    _ => &mut ways[side].reordering,
                };
                (trouble.until, trouble.one_in) = (until, one_in);
            }
        }
        true
    }

    fn touch_all(&mut self, which: impl Fn(&[usize; 2]) -> bool) {
        for (index, link) in self.links.iter().enumerate() {
            if which(&link.hosts) {
                self.auditor.touch(index);
            }
        }
    }

    fn block(&mut self, from: usize, to: usize, until: u64) {
        let count = self.hosts.len();
        self.blocked[from * count + to] += 1;
        self.touch_all(|hosts| hosts.contains(&from) && hosts.contains(&to));
        self.at(until, Event::Unblock(from, to));
    }

    pub(crate) fn unblock(&mut self, from: usize, to: usize) {
        let count = self.hosts.len();
        let blocked = &mut self.blocked[from * count + to];
        if self.mutation == Some(Mutation::StaysBlocked) && *blocked == 1 {
            return;
        }
        *blocked = blocked.saturating_sub(1);
        if *blocked == 0 {
            self.repeat_blocked(from, to);
        }
    }

    /// What waits on the way is repeated, each connection's when its timer says so.
    fn repeat_blocked(&mut self, from: usize, to: usize) {
        for link in 0..self.links.len() {
            let Some(side) = (0..2).find(|side| {
                self.links[link].hosts[*side] == from && self.links[link].hosts[1 - *side] == to
            }) else {
                continue;
            };
            let repetition = self.random.between(1_000, SECOND);
            self.after(repetition, Event::Arrive(link, 1 - side));
        }
    }

    pub(crate) fn thaw(&mut self, host: usize) {
        if self.hosts[host].frozen_until.take().is_some() {
            self.auditor.thawed(host);
        }
    }

    pub(crate) fn widen(&mut self, link: usize) {
        for side in 0..2 {
            let path = self.links[link].carrier.path(side);
            path.bytes_per_ms = path.bytes_per_ms.max(2_000);
        }
    }

    pub(crate) fn restart(&mut self, host: usize) {
        self.hosts[host].up = true;
    }

    /// Every fault that lasts is over.
    pub(crate) fn heal(&mut self) {
        for host in 0..self.hosts.len() {
            self.thaw(host);
            self.restart(host);
            self.resume(host);
        }
        for link in 0..self.links.len() {
            self.widen(link);
            match &mut self.links[link].carrier {
                Carrier::Bytes(pipes) => pipes.iter_mut().for_each(|pipe| pipe.flip_at = None),
                Carrier::Datagrams(ways) => ways.iter_mut().for_each(Datagrams::heal),
            }
        }
        for from in 0..self.hosts.len() {
            for to in 0..self.hosts.len() {
                if self.blocked[from * self.hosts.len() + to] > 0 {
                    self.blocked[from * self.hosts.len() + to] = 1;
                    self.unblock(from, to);
                }
            }
        }
    }
}
