package rig

import (
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Processes is the spec of a service of processes that run a line of the shell.
func Processes(name string, replicas uint64, shell string) *musterv1.ServiceSpec {
	return generic(name, replicas, "process", map[string]any{"shell": shell, "stopGracePeriod": "1s"})
}

// Null is the spec of a service of tasks that do nothing.
func Null(name string, replicas uint64) *musterv1.ServiceSpec {
	return generic(name, replicas, "null", nil)
}

// Sleep is a line of the shell that runs until it is stopped.
const Sleep = "exec sleep 1000000"

func generic(name string, replicas uint64, kind string, payload map[string]any) *musterv1.ServiceSpec {
	// What a payload holds here is JSON.
	fields, err := structpb.NewStruct(payload)
	if err != nil {
		panic(err)
	}
	return &musterv1.ServiceSpec{
		Name: name,
		Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: kind, Payload: fields}}},
		Mode: &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &replicas}},
		// All tasks at once.
		Update: &musterv1.UpdateConfig{},
	}
}
