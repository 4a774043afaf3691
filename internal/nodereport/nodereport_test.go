package nodereport_test

import (
	"fmt"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
)

var (
	longest = strings.Repeat("x", nodereport.MaxName)
	tooLong = longest + "x"
)

func labels(n int) map[string]string {
	all := map[string]string{}
	for i := range n {
		all[fmt.Sprint("label-", i)] = "x"
	}
	return all
}

func generic(n int) *musterv1.Resources {
	r := &musterv1.Resources{}
	for range n {
		r.Generic = append(r.Generic, &musterv1.GenericResource{Kind: "gpu"})
	}
	return r
}

func generics(r ...*musterv1.GenericResource) *musterv1.Resources {
	return &musterv1.Resources{Generic: r}
}

func executors(e ...*musterv1.ExecutorDescription) *musterv1.NodeDescription {
	return &musterv1.NodeDescription{Executors: e}
}

func networkDrivers(n int, d *musterv1.NetworkDriverDescription) *musterv1.NodeDescription {
	node := &musterv1.NodeDescription{}
	for range n {
		node.NetworkDrivers = append(node.NetworkDrivers, d)
	}
	return node
}

// many returns a list of equal texts.
func many(n int, text string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = text
	}
	return all
}

func TestDescriptionAtEachLimitIsAccepted(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]*musterv1.NodeDescription{
		"nothing": {},
		"texts": {
			Hostname: longest, Version: longest, Machine: &musterv1.Machine{Id: longest},
			Platform: &musterv1.Platform{Os: longest, Architecture: longest},
		},
		"labels":       {Labels: labels(nodereport.MaxLabels)},
		"a label":      {Labels: map[string]string{longest: strings.Repeat("x", nodereport.MaxLabelValue)}},
		"resources":    {Resources: generic(nodereport.MaxGenericResources), Machine: &musterv1.Machine{Shared: generic(nodereport.MaxGenericResources)}},
		"a resource":   {Resources: generics(&musterv1.GenericResource{Kind: longest}, &musterv1.GenericResource{Kind: "gpu", Resource: &musterv1.GenericResource_Named{Named: longest}})},
		"executors":    {Executors: make([]*musterv1.ExecutorDescription, nodereport.MaxExecutors)},
		"kinds":        executors(&musterv1.ExecutorDescription{Kinds: many(nodereport.MaxKinds, strings.Repeat("k", 63))}),
		"capabilities": executors(&musterv1.ExecutorDescription{Capabilities: many(nodereport.MaxCapabilities, longest)}),
		"an executor":  executors(&musterv1.ExecutorDescription{Name: longest, Version: longest, Checksum: longest, Kinds: []string{"a-Z_0.9"}}),
		"network drivers": networkDrivers(nodereport.MaxNetworkDrivers, &musterv1.NetworkDriverDescription{
			Name: longest, Version: longest, Checksum: longest, Drivers: many(nodereport.MaxNetworkEntries, "overlay"), Missing: many(nodereport.MaxNetworkEntries, "x"),
		}),
		// The dispatcher drops it, and the node's executors are of use.
		"an unusable data path": {DataPath: &musterv1.DataPath{Address: "localhost"}},
		// The executor is unhealthy then, and the node's other executors are of use.
		"a schema": executors(&musterv1.ExecutorDescription{PayloadSchema: strings.Repeat("x", nodereport.MaxSchema+1)}),
	} {
		for i, e := range d.Executors {
			if e == nil {
				d.Executors[i] = &musterv1.ExecutorDescription{}
			}
		}
		if err := nodereport.Check(d); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDescriptionBeyondALimitIsRefusedByItsField(t *testing.T) {
	t.Parallel()
	for want, d := range map[string]*musterv1.NodeDescription{
		"description has ": {Hostname: strings.Repeat("x", nodereport.MaxDescription)},
		"description.hostname has 257 bytes, at most 256 are allowed":  {Hostname: tooLong},
		"description.version has 257 bytes":                            {Version: tooLong},
		"description.machine.id has 257 bytes":                         {Machine: &musterv1.Machine{Id: tooLong}},
		"description.platform.os has 257 bytes":                        {Platform: &musterv1.Platform{Os: tooLong}},
		"description.platform.architecture has 257 bytes":              {Platform: &musterv1.Platform{Architecture: tooLong}},
		"description.labels has 257 entries, at most 256 are allowed":  {Labels: labels(nodereport.MaxLabels + 1)},
		"description.labels has a key of 257 bytes":                    {Labels: map[string]string{tooLong: ""}},
		`description.labels["a"] has 1025 bytes, at most 1024`:         {Labels: map[string]string{"a": strings.Repeat("x", nodereport.MaxLabelValue+1)}},
		"description.resources.generic has 257 entries":                {Resources: generic(nodereport.MaxGenericResources + 1)},
		"description.machine.shared.generic has 257 entries":           {Machine: &musterv1.Machine{Shared: generic(nodereport.MaxGenericResources + 1)}},
		"description.resources.generic[1].kind has 257 bytes":          {Resources: generics(&musterv1.GenericResource{Kind: "gpu"}, &musterv1.GenericResource{Kind: tooLong})},
		"description.resources.generic[0].named has 257 bytes":         {Resources: generics(&musterv1.GenericResource{Resource: &musterv1.GenericResource_Named{Named: tooLong}})},
		"description.machine.shared.generic[0].kind has 257 bytes":     {Machine: &musterv1.Machine{Shared: generics(&musterv1.GenericResource{Kind: tooLong})}},
		"description.executors has 33 entries, at most 32 are allowed": {Executors: make([]*musterv1.ExecutorDescription, nodereport.MaxExecutors+1)},
		"description.executors[1].name has 257 bytes":                  executors(&musterv1.ExecutorDescription{}, &musterv1.ExecutorDescription{Name: tooLong}),
		"description.executors[0].version has 257 bytes":               executors(&musterv1.ExecutorDescription{Version: tooLong}),
		"description.executors[0].checksum has 257 bytes":              executors(&musterv1.ExecutorDescription{Checksum: tooLong}),
		"description.executors[0].kinds has 17 entries":                executors(&musterv1.ExecutorDescription{Kinds: many(nodereport.MaxKinds+1, "k")}),
		"description.executors[0].kinds[1] has 257 bytes":              executors(&musterv1.ExecutorDescription{Kinds: []string{"k", tooLong}}),
		`description.executors[0].kinds[0] is "": want at most 63`:     executors(&musterv1.ExecutorDescription{Kinds: []string{""}}),
		`description.executors[0].kinds[0] is "a b": want at most 63`:  executors(&musterv1.ExecutorDescription{Kinds: []string{"a b"}}),
		"description.executors[0].kinds[0] is \"" + longest[:64] + `"`: executors(&musterv1.ExecutorDescription{Kinds: []string{longest[:65]}}),
		"description.executors[0].capabilities has 257 entries":        executors(&musterv1.ExecutorDescription{Capabilities: many(nodereport.MaxCapabilities+1, "c")}),
		"description.executors[0].capabilities[0] has 257 bytes":       executors(&musterv1.ExecutorDescription{Capabilities: []string{tooLong}}),
		"description.network_drivers has 9 entries":                    networkDrivers(nodereport.MaxNetworkDrivers+1, &musterv1.NetworkDriverDescription{}),
		"description.network_drivers[0].name has 257 bytes":            networkDrivers(1, &musterv1.NetworkDriverDescription{Name: tooLong}),
		"description.network_drivers[0].drivers has 33 entries":        networkDrivers(1, &musterv1.NetworkDriverDescription{Drivers: many(nodereport.MaxNetworkEntries+1, "d")}),
		"description.network_drivers[0].missing[0] has 257 bytes":      networkDrivers(1, &musterv1.NetworkDriverDescription{Missing: []string{tooLong}}),
	} {
		if err := nodereport.Check(d); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error is %v, want %q", err, want)
		}
	}
}
