// Package status finds out how the cluster's own parts do: the store, each
// instance of each manager daemon, and the shards that they share.
//
// What is found comes from those who know: who takes part, and who holds which
// shard since when, from the members' and locks' records in the store; who has
// died lately, from the store's catalog of processes; and how far an instance's
// view has come, from the instance. Looking is one thing ([Looker.Look]), and what
// to make of it another ([Judge]), which is a function of the findings alone.
package status

import (
	"time"

	daemonv1 "github.com/musterhq/muster/api/muster/daemon/v1"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/shards"
)

// Subsystem is work that the instances of one daemon share out.
type Subsystem struct {
	// Name is that of its shards, Daemon that of the program.
	Name, Daemon string
	Shards       int
}

// Subsystems returns all of them. That of apid is its sweep, of which one
// instance has the lock; all of its instances take part.
func Subsystems() []Subsystem {
	return []Subsystem{
		{Name: "apid", Daemon: "apid", Shards: 1},
		{Name: "orchestrator", Daemon: "orchestratord", Shards: shards.DefaultShards},
		// One shard is what is unique in the cluster, the others are by network.
		{Name: "allocator", Daemon: "allocatord", Shards: 1 + shards.DefaultShards},
		{Name: "scheduler", Daemon: "schedulerd", Shards: shards.DefaultShards},
		{Name: "dispatcher", Daemon: "dispatcherd", Shards: shards.DefaultShards},
	}
}

// Findings are what was found at one moment.
type Findings struct {
	Store Store
	// Ownership is that of each subsystem, by name: as the store has it, or, if it
	// was not reached, as it was known last.
	Ownership map[string]shards.Ownership
	// Processes are those in the store's catalog, by daemon.
	Processes map[string][]kv.Process
	// Newest holds the sequence numbers of each table's shards, read before
	// anybody was asked for a report; nil if they could not be read.
	Newest map[string][]uint64
	// Reports are what instances answered.
	Reports map[string]Report
}

// Store is what was found of the store.
type Store struct {
	kv.Description
	// Err is why a read that only the leader may answer was not answered.
	Err     error
	Latency time.Duration
	// StaleFor is how old what this process knows is.
	StaleFor time.Duration
}

// Report is what came of asking an instance.
type Report struct {
	*daemonv1.ReportResponse
	Err error
}
