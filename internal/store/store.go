// Package store keeps tables of records in a [kv.KV]. The cost of a change depends
// on the size of the change, never on the size of the cluster.
//
// # Schema
//
// A table has 16 shards. A hash of the first segment of a record's key ("a" in
// "a/b/c") selects its shard. A shard is a B+-tree of two levels: one head, and the
// pages that it lists. A page holds the records of one range of keys, sorted, with
// their versions. It is split when it exceeds a size limit.
//
//	<prefix>/<table>/h/<shard>         the head: sequence number, last writers,
//	                                   and per page: lower bound, number,
//	                                   sequence number of its last change, checksum
//	<prefix>/<table>/p/<shard>/<page>  a page: records as key, version, value
//	<prefix>/changes/<table>           the mark of a rarely written table: its last commit
//
// Keys are chosen so that records that change together are close together: the
// tasks of a service are neighbours, and so are the statuses of a node.
//
// # Commit
//
// Concurrent updates are joined into one transaction of the kv (group commit). It
// compares and sets the head of every shard that an update has written to, checks
// the head of every shard that it has only read, and writes the changed pages. If
// another process has changed one of the heads, the store reads the changes and runs
// the update functions again. Updates are therefore serializable and atomic over any
// number of tables. Compare-and-set alone guards them; no lock is needed. Each
// update increments the sequence number of the shards that it writes to. A record's
// version is its shard's sequence number at the update that wrote the record.
//
// If the kv does not report the outcome of a transaction, the store finds it in the
// heads, which list the last commits of their last writers. No update is applied
// twice, and no applied update is reported as failed. The outcome can be unknown.
//
// # Watch
//
// One blocking list of a table's heads reports changes. Rarely written tables share
// one list, of their marks (see [Table.RarelyWritten]). After a change, the store
// reads the heads and the changed pages in one transaction, so a snapshot never holds
// a part of an update's changes to one table. Tables are read independently: an
// update of two tables is atomic in the store, but a snapshot may show the change of
// one table before the change of the other.
//
// Every two seconds the store reads the heads of one table from the leader of the
// kv. This detects a kv that hangs and a server that has lost its leader, which a
// watch cannot detect. [Store.Status] says how far the snapshot may be behind.
//
// A [Snapshot] is immutable. Readers find changes by comparing two snapshots
// ([Table.Changes]), so there is no queue for a slow reader: it skips intermediate
// states and sees the latest one.
package store
