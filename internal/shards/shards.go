// Package shards decides which replica of a daemon works on which part of the
// state. The work of a subsystem is cut into as many shards as the store has;
// each shard is worked on by the replica that holds its lock, and every replica
// holds its even share of them. Replicas that join, leave or die move as few
// shards as that takes.
//
//	<prefix>/members/<subsystem>/<instance>  a replica: its Member, as JSON
//	<prefix>/locks/<subsystem>/<shard>       a shard's lock: its Holding, as JSON
//
// Both are held under the replica's session and go with it. A shard is assigned
// by a function of the members alone, which every replica computes for itself:
// who holds a shard that is another's gives it up as soon as its role function
// has returned, and the other takes it.
//
// A lock says who should work, and nothing else. What is true is decided by the
// compare-and-set in the store, so a replica that was paused and does not know
// yet that it lost its locks can do no harm. What a lock's value says of its
// holder is advice and may be stale.
package shards
