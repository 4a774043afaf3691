// Package simulation runs a whole cluster in one process on virtual time: several
// replicas of each manager daemon, up to hundreds of workers with the null executor,
// and users, over a store and a network in memory. A seed says what users do and
// what goes wrong: daemons, workers and machines die and return, connections break,
// hang and are slow, the store fails before and after it commits, news come late
// and reports twice. All the while, and when nothing goes wrong any more, it looks at
// what must be so.
//
// It owns the script (script.go, spec.go), the network and the store with their
// faults (network.go, store.go, faults.go), the processes (manager.go, node.go), the
// users (user.go), and the judgement (observer.go, picture.go, settled.go). What runs
// in it is the product as it is.
package simulation
