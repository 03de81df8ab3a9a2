//! On which nodes the instances of HTTP services run.
//!
//! They are spread over zones first, then over nodes. What is placed stays, unless its node is gone,
//! drained or leaving, or a zone (or a node of a zone) has two more than another that could take one:
//! then as few move as make it even. Nodes without a zone are one zone.
//!
//! Instances of a node that is lost have their *home* there still. Others stand in for them, each on a
//! node where there are fewest; nothing else moves. When it is back they run there again beside their
//! stand-ins, and once those have left all is as if it had been there all the time.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::http::{INSTANCES_MAX, Placed, RunSpec};
use super::{Duty, HttpSpec, NodeSpec, ServiceSpec, Source, Spec};

impl Spec {
    /// Gives each instance that is wanted a node and a port. [`Spec::unplaced`] says where there were
    /// too few ports.
    pub fn place(&mut self) {
        self.place_beside(&BTreeSet::new());
    }

    /// The same; ports that something had until now are taken last, since it may not have ended yet.
    pub(super) fn place_beside(&mut self, before: &BTreeSet<(String, u16)>) {
        let names: Vec<String> = self.http_services().map(|(name, _)| name.clone()).collect();
        for name in names {
            let Some(run) = self.run_mut(&name).cloned() else { continue };
            let (placed, home) = self.places(&name, &run, before);
            if let Some(run) = self.run_mut(&name) {
                (run.placed, run.home) = (placed, home);
            }
        }
        for service in self.services.values_mut() {
            if let ServiceSpec::Http(http) = service {
                http.forget_drained();
            }
        }
    }

    /// Where the instances of a service are to be, and where those go back to that are away.
    fn places(
        &self,
        service: &str,
        run: &RunSpec,
        before: &BTreeSet<(String, u16)>,
    ) -> (Places, Places) {
        let home = run.homes();
        let away = |id: &String| !home.contains_key(id);
        let stand_ins = run.placed.iter().filter(|(id, _)| away(id));
        let stand_ins: Places = stand_ins.map(|(id, it)| (id.clone(), it.clone())).collect();
        let hosts = self.hosts(run);
        let live = hosts.iter().filter(|(_, node)| node.lost.is_none());
        let live: BTreeMap<_, _> = live.map(|(name, it)| (name.clone(), it.clone())).collect();

        let mut room = Room::new(self, service, hosts.clone(), before);
        room.adopts = stand_ins;
        room.hold(home);
        room.settle(run.instances as usize);
        let (home, stand_ins) = (room.placed, room.adopts);
        let all_live = home.values().all(|place| live.contains_key(&place.node));
        let is_back = |place: &&Placed| hosts.get(&place.node).is_some_and(|it| it.back.is_some());
        let back = home.values().filter(is_back).count();
        // With nowhere to go they stay.
        if (all_live && back == 0) || live.is_empty() {
            return (home, Places::new());
        }
        let mut room = Room::new(self, service, live, before);
        room.hold(&home);
        room.stand_in(stand_ins, home.len(), home.len() + back);
        (room.placed, home)
    }

    /// Takes over where instances are from the spec in force. The ports that it gave to any.
    pub(super) fn keep_placed(&mut self, old: &Spec) -> BTreeSet<(String, u16)> {
        for (name, service) in &old.services {
            let ServiceSpec::Http(was) = service else { continue };
            if let Some(ServiceSpec::Http(http)) = self.services.get_mut(name) {
                http.drained = was.drained.clone();
            }
            if let (Some(run), Some(was)) = (self.run_mut(name), was.run()) {
                (run.placed, run.home) = (was.placed.clone(), was.home.clone());
            }
        }
        old.http_ports()
    }

    /// The ports of instances of HTTP services, with their nodes.
    pub(super) fn http_ports(&self) -> BTreeSet<(String, u16)> {
        let all = self.http_services().flat_map(|(_, http)| http.held());
        all.map(|it| (it.node.clone(), it.port)).collect()
    }

    /// A service with fewer places than wanted: its name, and how many it has. What is missing only
    /// while a node is lost is not counted.
    pub fn unplaced(&self) -> Option<(&str, usize)> {
        let count = |run: &RunSpec| run.homes().len();
        let lacks = |run: &RunSpec| count(run) < run.instances as usize;
        let run = |http: &HttpSpec| http.run().filter(|run| lacks(run)).map(count);
        self.http_services().find_map(|(name, http)| Some((name.as_str(), run(http)?)))
    }

    /// Says since when a node is lost, or that it isn't; stand-ins come and go.
    pub fn set_lost(&mut self, node: &str, since: Option<String>) {
        if let Some(it) = self.nodes.get_mut(node) {
            (it.lost, it.back) = (since, None);
        }
        self.place_beside(&self.http_ports());
    }

    /// Says since when a node that was lost is back; its instances begin beside their stand-ins, which
    /// end by [`Spec::set_lost`] without a time.
    pub fn set_back(&mut self, node: &str, since: String) {
        if let Some(it) = self.nodes.get_mut(node) {
            (it.lost, it.back) = (None, Some(since));
        }
        self.place_beside(&self.http_ports());
    }

    /// Says what is expected of a node from now on; instances go where they may be.
    pub fn set_duty(&mut self, node: &str, duty: Duty) {
        if let Some(it) = self.nodes.get_mut(node) {
            it.duty = duty;
        }
        self.place_beside(&self.http_ports());
    }

    /// The nodes that may run it, if they are active; if none of them is, all of them: a service with
    /// nowhere to go stays where it is.
    fn hosts(&self, run: &RunSpec) -> BTreeMap<String, NodeSpec> {
        let may = |name: &String| run.nodes.is_empty() || run.nodes.contains(name);
        let all = self.nodes.iter().filter(|(name, _)| may(name));
        let all: BTreeMap<_, _> = all.map(|(name, it)| (name.clone(), it.clone())).collect();
        match all.values().any(|node| node.duty.is_active()) {
            true => all.into_iter().filter(|(_, node)| node.duty.is_active()).collect(),
            false => all,
        }
    }

    fn run_mut(&mut self, service: &str) -> Option<&mut RunSpec> {
        match self.services.get_mut(service)? {
            ServiceSpec::Http(HttpSpec { source: Source::Run(run), .. }) => Some(run),
            ServiceSpec::Http(_) | ServiceSpec::Postgres(_) => None,
        }
    }
}

/// By the ids of instances.
type Places = BTreeMap<String, Placed>;

/// Where the instances of one service are, and could be.
struct Room<'a> {
    hosts: BTreeMap<String, NodeSpec>,
    /// Ports of other services, by node.
    others: BTreeMap<String, BTreeSet<u16>>,
    before: &'a BTreeSet<(String, u16)>,
    placed: Places,
    /// Instances that run already and become one of these rather than a new one.
    adopts: Places,
}

/// How full a node is, most important first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Fullness {
    of_zone: usize,
    of_node: usize,
    with_others: usize,
}

impl<'a> Room<'a> {
    fn new(
        spec: &Spec,
        service: &str,
        hosts: BTreeMap<String, NodeSpec>,
        before: &'a BTreeSet<(String, u16)>,
    ) -> Room<'a> {
        let taken = |node: &String| {
            let databases = spec.databases().filter_map(|(_, it)| it.port(node));
            let others = spec.http_services().filter(|(name, _)| *name != service);
            let others = others.flat_map(|(_, http)| http.held());
            databases.chain(others.filter(|it| it.node == *node).map(|it| it.port)).collect()
        };
        let others = hosts.keys().map(|node| (node.clone(), taken(node))).collect();
        Room { hosts, others, before, placed: BTreeMap::new(), adopts: BTreeMap::new() }
    }

    /// Keeps those that are where they may be.
    fn hold(&mut self, held: &Places) {
        for (id, place) in held {
            if self.may_hold(id, place) {
                self.placed.insert(id.clone(), place.clone());
            }
        }
    }

    fn may_hold(&self, id: &str, place: &Placed) -> bool {
        let usable = self.hosts.get(&place.node).is_some_and(|node| node.may_use(place.port));
        let free = !self.ports_of(&place.node).any(|port| port == place.port);
        usable && free && number(id, &place.node).is_some()
    }

    /// Adds stand-ins until there are `most` in all, first those that are there already: of them leave
    /// where most are. Nothing else leaves. A node that is back and not found well yet takes one only if
    /// there were less than `least` without it: what may run on that node alone never runs twice.
    fn stand_in(&mut self, mut stand_ins: Places, least: usize, most: usize) {
        stand_ins.retain(|id, place| self.may_hold(id, place));
        let own = self.placed.clone();
        self.placed.append(&mut stand_ins);
        for _ in 0..INSTANCES_MAX {
            match self.placed.len().cmp(&most) {
                Ordering::Greater => {
                    let Some(id) = self.leaving(&own) else { return };
                    self.placed.remove(&id);
                }
                Ordering::Less => {
                    let takers = self.takers();
                    let sound = takers.iter().find(|node| self.hosts[*node].back.is_none());
                    let any = takers.first().filter(|_| self.placed.len() < least);
                    let Some(node) = sound.or(any).cloned() else { return };
                    self.add(&node);
                }
                Ordering::Equal => return,
            }
        }
    }

    /// Takes away, adds and moves until so many are spread evenly, as far as ports go.
    fn settle(&mut self, wanted: usize) {
        // Each step takes one away, adds one, or evens zones or nodes out by one.
        for _ in 0..4 * INSTANCES_MAX {
            let step = match self.placed.len().cmp(&wanted) {
                Ordering::Greater => (self.leaving(&Places::new()), None),
                Ordering::Less => (None, self.takers().first().cloned()),
                Ordering::Equal => self.uneven().unzip(),
            };
            if step == (None, None) {
                return;
            }
            let (leaving, taker) = step;
            leaving.map(|id| self.placed.remove(&id));
            if let Some(node) = taker {
                self.add(&node);
            }
        }
    }

    /// Who leaves when one has to, which is none that `stays`: of the fullest zone and node, the highest
    /// number.
    fn leaving(&self, stays: &Places) -> Option<String> {
        let of = |node: &String| Some((self.fullness(node), self.last(node, stays)?));
        self.hosts.keys().filter_map(of).max().map(|(_, (_, id))| id)
    }

    /// Who takes one more, first the emptiest zone and node: those that have a port for it.
    fn takers(&self) -> Vec<String> {
        let able = self.hosts.keys().filter(|node| self.port(node).is_some());
        let mut takers: Vec<_> = able.map(|node| (self.fullness(node), node)).collect();
        takers.sort();
        takers.into_iter().map(|(_, node)| node.clone()).collect()
    }

    /// An instance of a zone, or of a node within one, that has two more than another: it, and the
    /// node to take it.
    fn uneven(&self) -> Option<(String, String)> {
        let mut full: Vec<_> = self.hosts.keys().map(|node| (self.fullness(node), node)).collect();
        full.sort_by(|a, b| b.cmp(a));
        let takers: Vec<_> =
            self.takers().into_iter().map(|node| (self.fullness(&node), node)).collect();
        full.iter().find_map(|(from, node)| {
            let evener =
                |(to, taker): &&(Fullness, String)| match self.zone(node) == self.zone(taker) {
                    true => from.of_node > to.of_node + 1,
                    false => from.of_zone > to.of_zone + 1,
                };
            let (_, taker) = takers.iter().find(evener)?;
            Some((self.last(node, &Places::new())?.1, taker.clone()))
        })
    }

    /// The instance of a node with the highest number, of those that don't stay.
    fn last(&self, node: &str, stays: &Places) -> Option<(u32, String)> {
        let goes = |id: &String, place: &Placed| place.node == node && !stays.contains_key(id);
        let of = self.placed.iter().filter(|(id, place)| goes(id, place));
        of.filter_map(|(id, _)| Some((number(id, node)?, id.clone()))).max()
    }

    fn add(&mut self, node: &str) {
        let there =
            |(id, place): &(&String, &Placed)| place.node == node && self.may_hold(id, place);
        if let Some(id) = self.adopts.iter().find(there).map(|(id, _)| id.clone()) {
            self.placed.extend(self.adopts.remove_entry(&id));
            return;
        }
        let ids = (1..).map(|n| format!("{node}.{n}"));
        let free = ids.take(self.placed.len() + 1).find(|id| !self.placed.contains_key(id));
        if let (Some(id), Some(port)) = (free, self.port(node)) {
            self.placed.insert(id, Placed { node: node.to_owned(), port });
        }
    }

    fn fullness(&self, node: &str) -> Fullness {
        let count = |same: &dyn Fn(&str) -> bool| {
            self.placed.values().filter(|place| same(&place.node)).count()
        };
        let of_node = count(&|it| it == node);
        Fullness {
            of_zone: count(&|it| self.zone(it) == self.zone(node)),
            of_node,
            with_others: of_node + self.others.get(node).map_or(0, BTreeSet::len),
        }
    }

    fn zone(&self, node: &str) -> Option<&String> {
        self.hosts.get(node)?.zone.as_ref()
    }

    /// The first free port of a node; one that something had until now only if there is no other.
    fn port(&self, node: &str) -> Option<u16> {
        let spec = self.hosts.get(node)?;
        let taken: BTreeSet<u16> = self.ports_of(node).collect();
        let all = (0..spec.ports.instances_max()).filter_map(|index| spec.instance_port(index));
        let free = || all.clone().filter(|port| !taken.contains(port));
        let had = |port: &u16| self.before.contains(&(node.to_owned(), *port));
        free().find(|port| !had(port)).or_else(|| free().next())
    }

    fn ports_of(&self, node: &str) -> impl Iterator<Item = u16> {
        let own = self.placed.values().filter(move |it| it.node == node).map(|it| it.port);
        own.chain(self.others.get(node).into_iter().flatten().copied())
    }
}

/// The N of NODE.N.
fn number(id: &str, node: &str) -> Option<u32> {
    id.strip_prefix(node)?.strip_prefix('.')?.parse().ok()
}

#[cfg(test)]
mod tests;
