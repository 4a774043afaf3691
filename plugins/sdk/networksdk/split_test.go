package networksdk_test

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// TestPartsOfARequestSayTheSame checks that however a request is split, the parts say the same in the same order, and none but those
// of a single message exceeds the limit.
func TestPartsOfARequestSayTheSame(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := &networkv1.ApplyRequest{Complete: rapid.Bool().Draw(t, "complete"), RemovedNetworks: []string{"gone"}}
		var want []string
		add := func(kind, id string) string {
			want = append(want, kind+" "+id)
			return id
		}
		for i := range rapid.IntRange(0, 5).Draw(t, "networks") {
			c.Networks = append(c.Networks, &networkv1.Network{Id: add("network", fmt.Sprint(i))})
		}
		for i := range rapid.IntRange(0, 5).Draw(t, "peers") {
			c.Peers = append(c.Peers, &networkv1.Peer{NodeId: add("peer", fmt.Sprint(i))})
		}
		for i := range rapid.IntRange(0, 5).Draw(t, "services") {
			c.Services = append(c.Services, &networkv1.Service{Id: add("service", fmt.Sprint(i))})
		}
		for i := range len(c.Services) {
			b := &networkv1.Backends{ServiceId: fmt.Sprint(i), Complete: true}
			for k := range rapid.IntRange(0, 20).Draw(t, "backends") {
				b.Backends = append(b.Backends, &networkv1.Backend{TaskId: add("backend", fmt.Sprint(i, "-", k))})
			}
			c.Backends = append(c.Backends, b)
		}
		limit := rapid.IntRange(10, 100).Draw(t, "limit")
		parts := networksdk.Split(c, limit)
		var got []string
		whole := map[string]bool{}
		for i, p := range parts {
			if p.Complete != (c.Complete && i == 0) || p.More != (c.Complete && i < len(parts)-1) {
				t.Fatalf("part %d of %d has complete %t and more %t", i, len(parts), p.Complete, p.More)
			}
			if (len(p.RemovedNetworks) > 0) != (i == 0) {
				t.Fatalf("part %d removes %v", i, p.RemovedNetworks)
			}
			size, messages := 0, 0
			count := func(m proto.Message) { size, messages = size+proto.Size(m), messages+1 }
			for _, n := range p.Networks {
				count(n)
				got = append(got, "network "+n.Id)
			}
			for _, peer := range p.Peers {
				count(peer)
				got = append(got, "peer "+peer.NodeId)
			}
			for _, s := range p.Services {
				count(s)
				got = append(got, "service "+s.Id)
			}
			for _, b := range p.Backends {
				count(b)
				if b.Complete == whole[b.ServiceId] {
					t.Fatalf("backends of service %s are complete %t, and there were others: %t", b.ServiceId, b.Complete, whole[b.ServiceId])
				}
				whole[b.ServiceId] = true
				for _, one := range b.Backends {
					got = append(got, "backend "+one.TaskId)
				}
			}
			if size > limit && messages > 1 {
				t.Fatalf("part %d has %d messages of %d bytes, more than %d", i, messages, size, limit)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("the parts say %v, want %v", got, want)
		}
	})
}
