package control_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/seal"
)

func stackLabels(name string) map[string]string {
	return map[string]string{musterv1.StackLabel: name}
}

// stackSpec returns a stack with one object of each kind.
func stackSpec(name, image string) *musterv1.StackSpec {
	web := webSpec(name + "_web")
	web.Labels, web.Task.GetContainer().Image = stackLabels(name), image
	return &musterv1.StackSpec{
		Name: name, Labels: map[string]string{"team": "web"}, Source: "services: {web: {environment: {PASSWORD: canary-1234567890}}}",
		Services: []*musterv1.ServiceSpec{web},
		Networks: []*musterv1.NetworkSpec{{Name: name + "_default", Labels: stackLabels(name)}},
		Configs:  []*musterv1.ConfigSpec{{Name: name + "_conf", Labels: stackLabels(name), Data: []byte("data")}},
		Secrets:  []*musterv1.SecretSpec{{Name: name + "_password", Labels: stackLabels(name), Data: []byte("secret")}},
	}
}

func (f *fixture) createStack(spec *musterv1.StackSpec) *musterv1.Stack {
	f.t.Helper()
	resp, err := f.CreateStack(f.t.Context(), &musterv1.CreateStackRequest{Spec: spec, Message: "first"})
	if err != nil {
		f.t.Fatal(err)
	}
	return resp.Stack
}

func (f *fixture) updateStack(version uint64, spec *musterv1.StackSpec) (*musterv1.Stack, error) {
	resp, err := f.UpdateStack(f.t.Context(), &musterv1.UpdateStackRequest{Stack: spec.GetName(), Version: version, Spec: spec, Message: "next"})
	return resp.GetStack(), err
}

func (f *fixture) revision(name string, number uint64) *musterv1.GetStackRevisionResponse {
	f.t.Helper()
	resp, err := f.GetStackRevision(f.t.Context(), &musterv1.GetStackRevisionRequest{Stack: name, Revision: number})
	if err != nil {
		f.t.Fatal(err)
	}
	return resp
}

func TestStackKeepsWhatWasDeployed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		spec := stackSpec("shop", "nginx:1")
		created := f.createStack(spec)
		if created.Revision.Number != 1 || created.Revision.Message != "first" || created.Spec.Source != "" || len(created.Spec.Services) > 0 {
			t.Errorf("created: %v", created)
		}
		got := f.revision("shop", 0)
		if len(got.Spec.DigestKey) != 32 {
			t.Errorf("digest key has %d bytes", len(got.Spec.DigestKey))
		}
		want := proto.CloneOf(spec)
		want.DigestKey, want.Secrets[0].Data = got.Spec.DigestKey, nil
		if !proto.Equal(got.Spec, want) {
			t.Errorf("content is %v\nwant %v", got.Spec, want)
		}
		// The same content again, as files give it, makes no revision.
		same, err := f.updateStack(created.Meta.Version, spec)
		if err != nil || same.Meta.Version != created.Meta.Version || same.Revision.Number != 1 {
			t.Errorf("same content: %v, %v", same, err)
		}
		next, err := f.updateStack(created.Meta.Version, stackSpec("shop", "nginx:2"))
		if err != nil || next.Revision.Number != 2 || next.Revision.Message != "next" || next.Revision.Digest == created.Revision.Digest {
			t.Fatalf("other content: %v, %v", next, err)
		}
		// A content that was there before has the digest that it had, for the key stays.
		back, err := f.updateStack(next.Meta.Version, spec)
		if err != nil || back.Revision.Number != 3 || back.Revision.Digest != created.Revision.Digest {
			t.Errorf("former content: %v, %v", back, err)
		}
		if _, err := f.updateStack(created.Meta.Version, stackSpec("shop", "nginx:4")); err == nil {
			t.Error("an update with an old version was taken")
		} else {
			wantCode(t, err, codes.Aborted)
		}
		// Stale is stale, even if the content is the current one.
		_, err = f.updateStack(created.Meta.Version, spec)
		wantCode(t, err, codes.Aborted)
		if image := f.revision("shop", 2).Spec.Services[0].Task.GetContainer().Image; image != "nginx:2" {
			t.Errorf("revision 2 has image %s", image)
		}
		_, err = f.GetStackRevision(t.Context(), &musterv1.GetStackRevisionRequest{Stack: "shop", Revision: 9})
		wantCode(t, err, codes.NotFound)
		list, err := f.ListStacks(t.Context(), &musterv1.ListStacksRequest{NamePrefixes: []string{"sh"}, Labels: []string{"team=web"}})
		if err != nil || len(list.Stacks) != 1 || list.Stacks[0].Revision.Number != 3 {
			t.Errorf("list: %v, %v", list, err)
		}
		for _, ref := range []string{created.Id, created.Id[:len(created.Id)-1], "SHOP"} {
			if got, err := f.GetStack(t.Context(), &musterv1.GetStackRequest{Stack: ref}); err != nil || got.Stack.Id != created.Id {
				t.Errorf("%s: %v, %v", ref, got, err)
			}
		}
		_, err = f.CreateStack(t.Context(), &musterv1.CreateStackRequest{Spec: spec})
		wantCode(t, err, codes.AlreadyExists)
	})
}

func TestStackKeepsLastRevisions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		s := f.createStack(stackSpec("shop", "nginx:1"))
		var err error
		for i := 2; i <= 30; i++ {
			if s, err = f.updateStack(s.Meta.Version, stackSpec("shop", fmt.Sprintf("nginx:%d", i))); err != nil {
				t.Fatal(err)
			}
		}
		list, err := f.ListStackRevisions(t.Context(), &musterv1.ListStackRevisionsRequest{Stack: "shop"})
		if err != nil {
			t.Fatal(err)
		}
		var numbers []uint64
		for _, r := range list.Revisions {
			numbers = append(numbers, r.Number)
		}
		if len(numbers) != 25 || numbers[0] != 30 || numbers[24] != 6 {
			t.Errorf("revisions %v; want 30 to 6", numbers)
		}
		if image := f.revision("shop", 6).Spec.Services[0].Task.GetContainer().Image; image != "nginx:6" {
			t.Errorf("revision 6 has image %s", image)
		}
		_, err = f.GetStackRevision(t.Context(), &musterv1.GetStackRevisionRequest{Stack: "shop", Revision: 5})
		wantCode(t, err, codes.NotFound)
	})
}

func TestStackSpecIsCheckedWhole(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		for name, c := range map[string]struct {
			change func(s *musterv1.StackSpec)
			field  string
		}{
			"name":             {func(s *musterv1.StackSpec) { s.Name = "Shop" }, "spec.name"},
			"no name":          {func(s *musterv1.StackSpec) { s.Name = "" }, "spec.name"},
			"image":            {func(s *musterv1.StackSpec) { s.Services[0].Task.GetContainer().Image = "" }, "spec.services[0].task.container.image"},
			"service name":     {func(s *musterv1.StackSpec) { s.Services[0].Name = "" }, "spec.services[0].name"},
			"two services":     {func(s *musterv1.StackSpec) { s.Services = append(s.Services, s.Services[0]) }, "spec.services[1].name"},
			"label":            {func(s *musterv1.StackSpec) { s.Networks[0].Labels = nil }, `spec.networks[0].labels["com.docker.stack.namespace"]`},
			"network":          {func(s *musterv1.StackSpec) { s.Networks[0].Mtu = 1 }, "spec.networks[0].mtu"},
			"config":           {func(s *musterv1.StackSpec) { s.Configs[0].Data = nil }, "spec.configs[0].data"},
			"secret":           {func(s *musterv1.StackSpec) { s.Secrets[0].Name = "a/b" }, "spec.secrets[0].name"},
			"secret's name":    {func(s *musterv1.StackSpec) { s.Secrets[0].Name = "" }, "spec.secrets[0].name"},
			"digest key":       {func(s *musterv1.StackSpec) { s.DigestKey = []byte("short") }, "spec.digestKey"},
			"more than fits":   {func(s *musterv1.StackSpec) { s.Source = strings.Repeat("x", 3<<20) }, "spec"},
			"several services": {func(s *musterv1.StackSpec) { s.Services = slices.Repeat(s.Services, 1001) }, "spec.services"},
		} {
			spec := stackSpec("shop", "nginx")
			c.change(spec)
			_, err := f.CreateStack(t.Context(), &musterv1.CreateStackRequest{Spec: spec})
			t.Log(name)
			wantCode(t, err, codes.InvalidArgument, c.field)
		}
		_, err := f.CreateStack(t.Context(), &musterv1.CreateStackRequest{Spec: stackSpec("shop", "nginx"), Message: strings.Repeat("x", 1001)})
		wantCode(t, err, codes.InvalidArgument, "message")
		_, err = f.CreateStack(t.Context(), &musterv1.CreateStackRequest{})
		wantCode(t, err, codes.InvalidArgument, "spec")

		cyclic := stackSpec("shop", "nginx")
		for i, pair := range [][2]string{{"shop_a", "shop_b"}, {"shop_b", "shop_c"}, {"shop_c", "Shop_A"}} {
			s := webSpec(pair[0])
			s.Labels, s.DependsOn = stackLabels("shop"), []*musterv1.ServiceDependency{{Service: pair[1]}}
			cyclic.Services = slices.Insert(cyclic.Services, i, s)
		}
		_, err = f.CreateStack(t.Context(), &musterv1.CreateStackRequest{Spec: cyclic})
		wantCode(t, err, codes.InvalidArgument, "spec.services[0].dependsOn")
		if err != nil && !strings.Contains(err.Error(), "shop_a -> shop_b -> shop_c -> shop_a") {
			t.Errorf("the error does not name the cycle: %v", err)
		}
	})
}

func TestStackWithoutClusterKeyIsRefusedByFlag(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := startSealed(t, nil)
		_, err := f.CreateStack(t.Context(), &musterv1.CreateStackRequest{Spec: stackSpec("shop", "nginx")})
		wantCode(t, err, codes.FailedPrecondition)
		if err != nil && !strings.Contains(err.Error(), "--cluster-key-file") {
			t.Errorf("the error does not name the flag: %v", err)
		}
	})
}

func TestStackIsOnlyRemovedWithoutObjects(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		spec := stackSpec("shop", "nginx")
		f.createStack(spec)
		service, config := f.create(spec.Services[0]), f.createConfig(spec.Configs[0])
		remove := func() uint64 {
			t.Helper()
			resp, err := f.RemoveStack(t.Context(), &musterv1.RemoveStackRequest{Stack: "shop"})
			if err != nil {
				t.Fatal(err)
			}
			return resp.Objects
		}
		if left := remove(); left != 2 {
			t.Errorf("%d objects are left, want 2", left)
		}
		marked, err := f.GetStack(t.Context(), &musterv1.GetStackRequest{Stack: "shop"})
		if err != nil || marked.Stack.RemovingSince == nil {
			t.Fatalf("%v, %v", marked, err)
		}
		_, err = f.updateStack(marked.Stack.Meta.Version, stackSpec("shop", "nginx:2"))
		wantCode(t, err, codes.FailedPrecondition)
		// No object can be added from now on, of any kind.
		other := webSpec("shop_other")
		other.Labels = stackLabels("shop")
		_, service1 := f.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: other})
		_, network := f.CreateNetwork(t.Context(), &musterv1.CreateNetworkRequest{Spec: spec.Networks[0]})
		_, config1 := f.CreateConfig(t.Context(), &musterv1.CreateConfigRequest{Spec: &musterv1.ConfigSpec{Name: "shop_other", Labels: stackLabels("shop"), Data: []byte("x")}})
		_, secret := f.CreateSecret(t.Context(), &musterv1.CreateSecretRequest{Spec: spec.Secrets[0]})
		for kind, err := range map[string]error{"service": service1, "network": network, "config": config1, "secret": secret} {
			t.Log(kind)
			wantCode(t, err, codes.FailedPrecondition)
		}
		f.create(webSpec("unrelated"))

		_, err = f.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: service.Id})
		_, err1 := f.RemoveConfig(t.Context(), &musterv1.RemoveConfigRequest{Config: config.Id})
		if err := errors.Join(err, err1); err != nil {
			t.Fatal(err)
		}
		if left := remove(); left != 0 {
			t.Errorf("%d objects are left, want none", left)
		}
		_, err = f.GetStack(t.Context(), &musterv1.GetStackRequest{Stack: "shop"})
		wantCode(t, err, codes.NotFound)
		// The name is free, for the stack and for its objects.
		if again := f.createStack(spec); again.Revision.Number != 1 {
			t.Errorf("revision %d of a new stack", again.Revision.Number)
		}
		f.create(spec.Services[0])
	})
}

// TestStoreHidesContentOfStacks looks for the content in all records, and opens it after a
// rotation of the cluster's key.
func TestStoreHidesContentOfStacks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		oldKey, newest := newKey(t), newKey(t)
		f, sealer := startSealed(t, seal.NewKeyring(oldKey, newest))
		s := f.createStack(stackSpec("shop", "nginx:1"))
		if _, err := f.updateStack(s.Meta.Version, stackSpec("shop", "nginx:2")); err != nil {
			t.Fatal(err)
		}
		found := 0
		for e := range f.Tables.StackBlobs.Scan(f.Snapshot(), "") {
			found += len(e.Value.Data)
			if bytes.Contains(e.Value.Data, []byte("canary")) || bytes.Contains(e.Value.Data, []byte("shop_web")) {
				t.Errorf("record %s shows the content", e.Key)
			}
		}
		if found == 0 {
			t.Error("there is no content at all")
		}
		for e := range f.Tables.Stacks.Scan(f.Snapshot(), "") {
			if strings.Contains(e.Value.String(), "canary") {
				t.Errorf("record shows the content: %v", e.Value)
			}
		}
		if counts := sealer.Count(); counts[oldKey.Name()] != 1 || len(counts) != 1 {
			t.Errorf("records by key: %v", counts)
		}
		if err := sealer.Reseal(t.Context(), newest.Name()); err != nil {
			t.Fatal(err)
		}
		if counts := sealer.Count(); counts[newest.Name()] != 1 || len(counts) != 1 {
			t.Errorf("records by key after the reseal: %v", counts)
		}
		for _, number := range []uint64{1, 2} {
			if image := f.revision("shop", number).Spec.Services[0].Task.GetContainer().Image; image != fmt.Sprintf("nginx:%d", number) {
				t.Errorf("revision %d has image %s", number, image)
			}
		}
		e, _ := f.Tables.Stacks.Get(f.Snapshot(), s.Id)
		for _, r := range e.Value.Revisions {
			if r.Envelope.KeyName != newest.Name() {
				t.Errorf("revision %d is sealed with %s", r.Number, r.Envelope.KeyName)
			}
		}
	})
}
