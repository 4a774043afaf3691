// Package state defines the content of the store: the tables, the keys of their
// records, and how records of different owners are joined into the tasks that a user
// sees.
//
// Each table has one owner. Only the owner writes it:
//
//	table             key                              written by     sharded by
//	services          <service>                        apid           service
//	specs             <digest>                         apid           digest
//	names             <folded name>/<kind>             apid           name
//	nodes             <node>                           apid           node
//	clusters          default                          apid           -
//	configs           <config>                         apid           config
//	secrets           <secret>                         apid           secret
//	stacks            <stack>                          apid           stack
//	stackblobs        <digest>, <digest>/<chunk>       apid           digest
//	sealing           default                          apid           -
//	networks          <network>                        apid           network
//	blobs             <digest>, <digest>/<chunk>       apid           digest
//	sealedblobs       <digest>, <digest>/<chunk>       apid           digest
//	authorities       default                          apid           -
//	tokens            <token id>                       apid           token
//	tasks             <service>/<slot or node>/<task>  orchestratord  service
//	rollouts          <service>                        orchestratord  service
//	endpoints         <service>                        allocatord     service
//	networkstates     <network>                        allocatord     network
//	blocks            <network>/<number>               allocatord     network
//	allocator_fences  <shard>                          allocatord     shard
//	assignments       <node>/<service>/<task>          schedulerd     node
//	placements        <service>/<digest>               schedulerd     service
//	scheduler_fences  <shard>                          schedulerd     shard
//	nodestates        <node>                           dispatcherd    node
//	statuses          <node>/<service>/<task>          dispatcherd    node
//
// All tables except tasks, assignments and statuses are rarely written and share one
// watch in each process.
//
// An owner removes its record when the record that it derives from is gone: a task with
// its service, an assignment with its task, a status with its assignment.
package state

import (
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/store"
)

// Tables are the handles of all tables.
type Tables struct {
	Services        *store.Table[*recordv1.Service]
	Specs           *store.Table[*recordv1.Spec]
	Names           *store.Table[*recordv1.Name]
	Nodes           *store.Table[*recordv1.Node]
	Clusters        *store.Table[*recordv1.Cluster]
	Configs         *store.Table[*recordv1.Config]
	Secrets         *store.Table[*recordv1.Secret]
	Stacks          *store.Table[*recordv1.Stack]
	StackBlobs      *store.Table[*recordv1.Blob]
	Sealing         *store.Table[*recordv1.Sealing]
	Networks        *store.Table[*recordv1.Network]
	Blobs           *store.Table[*recordv1.Blob]
	SealedBlobs     *store.Table[*recordv1.Blob]
	Authorities     *store.Table[*recordv1.Authority]
	Tokens          *store.Table[*recordv1.Token]
	Tasks           *store.Table[*recordv1.Task]
	Rollouts        *store.Table[*recordv1.Rollout]
	Endpoints       *store.Table[*recordv1.Endpoint]
	NetworkStates   *store.Table[*recordv1.NetworkState]
	Blocks          *store.Table[*recordv1.Block]
	AllocatorFences *store.Table[*recordv1.AllocatorFence]
	Assignments     *store.Table[*recordv1.Assignment]
	Placements      *store.Table[*recordv1.Placement]
	SchedulerFences *store.Table[*recordv1.SchedulerFence]
	NodeStates      *store.Table[*recordv1.NodeState]
	Statuses        *store.Table[*recordv1.Status]
}

// NewTables returns handles of all tables. A daemon opens its store with the tables that
// it reads or writes.
func NewTables() *Tables {
	return &Tables{
		Services:        store.NewTable("services", store.Proto(func() *recordv1.Service { return new(recordv1.Service) })).RarelyWritten(),
		Specs:           store.NewTable("specs", store.Proto(func() *recordv1.Spec { return new(recordv1.Spec) })).RarelyWritten(),
		Names:           store.NewTable("names", store.Proto(func() *recordv1.Name { return new(recordv1.Name) })).RarelyWritten(),
		Nodes:           store.NewTable("nodes", store.Proto(func() *recordv1.Node { return new(recordv1.Node) })).RarelyWritten(),
		Clusters:        store.NewTable("clusters", store.Proto(func() *recordv1.Cluster { return new(recordv1.Cluster) })).RarelyWritten(),
		Configs:         store.NewTable("configs", store.Proto(func() *recordv1.Config { return new(recordv1.Config) })).RarelyWritten(),
		Secrets:         store.NewTable("secrets", store.Proto(func() *recordv1.Secret { return new(recordv1.Secret) })).RarelyWritten(),
		Stacks:          store.NewTable("stacks", store.Proto(func() *recordv1.Stack { return new(recordv1.Stack) })).RarelyWritten(),
		StackBlobs:      store.NewTable("stackblobs", store.Proto(func() *recordv1.Blob { return new(recordv1.Blob) })).RarelyWritten(),
		Sealing:         store.NewTable("sealing", store.Proto(func() *recordv1.Sealing { return new(recordv1.Sealing) })).RarelyWritten(),
		Networks:        store.NewTable("networks", store.Proto(func() *recordv1.Network { return new(recordv1.Network) })).RarelyWritten(),
		Blobs:           store.NewTable("blobs", store.Proto(func() *recordv1.Blob { return new(recordv1.Blob) })).RarelyWritten(),
		SealedBlobs:     store.NewTable("sealedblobs", store.Proto(func() *recordv1.Blob { return new(recordv1.Blob) })).RarelyWritten(),
		Authorities:     store.NewTable("authorities", store.Proto(func() *recordv1.Authority { return new(recordv1.Authority) })).RarelyWritten(),
		Tokens:          store.NewTable("tokens", store.Proto(func() *recordv1.Token { return new(recordv1.Token) })).RarelyWritten(),
		Tasks:           store.NewTable("tasks", store.Proto(func() *recordv1.Task { return new(recordv1.Task) })),
		Rollouts:        store.NewTable("rollouts", store.Proto(func() *recordv1.Rollout { return new(recordv1.Rollout) })).RarelyWritten(),
		Endpoints:       store.NewTable("endpoints", store.Proto(func() *recordv1.Endpoint { return new(recordv1.Endpoint) })).RarelyWritten(),
		NetworkStates:   store.NewTable("networkstates", store.Proto(func() *recordv1.NetworkState { return new(recordv1.NetworkState) })).RarelyWritten(),
		Blocks:          store.NewTable("blocks", store.Proto(func() *recordv1.Block { return new(recordv1.Block) })).RarelyWritten(),
		AllocatorFences: store.NewTable("allocator_fences", store.Proto(func() *recordv1.AllocatorFence { return new(recordv1.AllocatorFence) })).RarelyWritten(),
		Assignments:     store.NewTable("assignments", store.Proto(func() *recordv1.Assignment { return new(recordv1.Assignment) })),
		Placements:      store.NewTable("placements", store.Proto(func() *recordv1.Placement { return new(recordv1.Placement) })).RarelyWritten(),
		SchedulerFences: store.NewTable("scheduler_fences", store.Proto(func() *recordv1.SchedulerFence { return new(recordv1.SchedulerFence) })).RarelyWritten(),
		NodeStates:      store.NewTable("nodestates", store.Proto(func() *recordv1.NodeState { return new(recordv1.NodeState) })).RarelyWritten(),
		Statuses:        store.NewTable("statuses", store.Proto(func() *recordv1.Status { return new(recordv1.Status) })),
	}
}
