// Package store keeps tables of records in a [kv.KV] so that the cost of a
// change is the size of the change, and never the size of the cluster.
//
// # Schema
//
// A table has 16 shards. Which shard a record lives in is a hash of the first
// segment of its key ("a" in "a/b/c"). A shard is a B+-tree of two levels: one
// head, and the pages that it lists. A page holds the records of one range of
// keys, in order, with their versions, and splits when it outgrows its bound.
//
//	<prefix>/<table>/h/<shard>         the head: sequence number, who committed
//	                                   last, and per page: lower bound, number,
//	                                   sequence number of its last change, checksum
//	<prefix>/<table>/p/<shard>/<page>  a page: records as key, version, value
//	<prefix>/changes/<table>           the mark of a rarely written table: its last commit
//
// Keys are chosen so that what changes together lies together: a service's
// tasks are neighbours, and so are a node's statuses.
//
// # Commit
//
// Updates that are asked for at the same time are joined into one transaction
// of the kv (group commit): compare-and-set of every head that an update wrote
// into, a check of every head that it only read from, and the pages that
// changed. If another process was faster, what it wrote is read and the update
// functions run again. So an update is serializable, atomic over any number of
// tables, and guarded by nothing but compare-and-set: no lock has to be held.
// A shard's sequence number grows by one with each update that writes to it; a
// record's version is that number at the update that wrote it.
//
// When the kv does not say what became of a transaction, the heads do: they name
// the last commits of their last writers. So no update is applied twice, and none
// is said to have failed that was applied: at worst its outcome is unknown.
//
// # Watch
//
// One blocking list on the heads of a table says when to look. Tables that are
// rarely written share one, on their marks (see [Table.RarelyWritten]). Then only
// the pages whose number moved are read, with the heads, in one transaction, so
// that a snapshot never holds half of an update's changes to one table. Tables
// are followed each for itself: an update over two tables is atomic in the
// store, and may be seen in one table a moment before the other.
//
// Every two seconds the heads of one table are read as the leader of the kv has
// them: so a kv that hangs is noticed, and a server of its that is cut off from the
// leader, though no watch tells. [Store.Status] says how far the snapshot may be
// behind.
//
// A [Snapshot] is immutable. Changes between two snapshots are found by
// comparing them ([Table.Changes]), so a slow reader holds no queue: it skips
// what it did not have time to see, and finds what is.
package store
