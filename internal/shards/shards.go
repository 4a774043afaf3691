// Package shards decides which replica of a daemon works on which part of the
// state. The work of a subsystem is divided into as many shards as a table of the
// store has. The replica that holds a shard's lock works on it, and all replicas
// hold the same number of locks, give or take one. When a replica joins, leaves or
// dies, as few shards as possible change their owner.
//
//	<prefix>/members/<subsystem>/<instance>  a replica: its Member, as JSON
//	<prefix>/locks/<subsystem>/<shard>       a shard's lock: its Lease, as JSON
//
// Both records belong to the replica's session and are deleted with it. The owner of
// a shard is a function of the set of members, which every replica computes for
// itself. A replica that holds a shard of another replica stops its work on the
// shard and releases the lock, and the other replica acquires it.
//
// A lock only decides who should work. Compare-and-set in the store decides what is
// true, so a replica that was paused and has lost its locks without noticing can do
// no harm. The value of a lock is a hint and may be stale.
package shards
