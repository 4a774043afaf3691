package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// serviceWith writes a service whose tasks refer to a config, as a later version will.
func (f *fixture) serviceWith(name, config string) {
	spec := webSpec(name)
	spec.Task.GetContainer().Configs = []*musterv1.ConfigReference{{ConfigId: config}}
	digest, err := state.Digest(spec.Task)
	if err != nil {
		f.t.Fatal(err)
	}
	f.update(func(tx *store.Tx) {
		f.Tables.Specs.Put(tx, state.SpecKey(digest), &recordv1.Spec{Task: spec.Task, CreatedAt: 1})
		f.Tables.Services.Put(tx, "id-"+name, &recordv1.Service{Spec: &musterv1.ServiceSpec{Name: name}, TaskDigest: digest, SpecVersion: 1})
	})
}

func TestConfigUpdateChangesLabelsOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		created := a.createConfig(configSpec("app", []byte("data")))
		update := func(version uint64, spec *musterv1.ConfigSpec) (*musterv1.Config, error) {
			resp, err := a.UpdateConfig(t.Context(), &musterv1.UpdateConfigRequest{Config: "app", Version: version, Spec: spec})
			return resp.GetConfig(), err
		}
		labels := map[string]string{"tier": "front"}
		updated, err := update(created.Meta.Version, &musterv1.ConfigSpec{Name: "app", Labels: labels})
		if err != nil || updated.Spec.Labels["tier"] != "front" || len(updated.Spec.Labels) != 1 || updated.Meta.Version <= created.Meta.Version {
			t.Fatalf("update: %v, %v", updated, err)
		}
		// What get returned can be sent back.
		got, err := a.GetConfig(t.Context(), &musterv1.GetConfigRequest{Config: "app"})
		if err != nil || string(got.Config.Spec.Data) != "data" {
			t.Fatalf("get: %v, %v", got, err)
		}
		if same, err := update(updated.Meta.Version, got.Config.Spec); err != nil || same.Meta.Version != updated.Meta.Version {
			t.Errorf("the same spec again: %v, %v", same, err)
		}
		_, err = update(created.Meta.Version, &musterv1.ConfigSpec{Labels: labels})
		wantCode(t, err, codes.Aborted)
		_, err = update(0, &musterv1.ConfigSpec{Labels: labels})
		wantCode(t, err, codes.InvalidArgument, "version")
		_, err = update(updated.Meta.Version, &musterv1.ConfigSpec{Name: "App", Data: []byte("other")})
		wantCode(t, err, codes.InvalidArgument, "spec.name", "spec.data")
	})
}

func TestConfigSpecIsChecked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spec   *musterv1.ConfigSpec
		code   codes.Code
		fields []string
	}{
		"no spec":        {nil, codes.InvalidArgument, []string{"spec"}},
		"nothing":        {&musterv1.ConfigSpec{}, codes.InvalidArgument, []string{"spec.name", "spec.data"}},
		"name":           {configSpec("a/b", []byte("x")), codes.InvalidArgument, []string{"spec.name"}},
		"ends in a dot":  {configSpec("a.", []byte("x")), codes.InvalidArgument, []string{"spec.name"}},
		"long name":      {configSpec(strings.Repeat("a", 65), []byte("x")), codes.InvalidArgument, []string{"spec.name"}},
		"too much data":  {configSpec("a", make([]byte, 1000<<10+1)), codes.InvalidArgument, []string{"spec.data"}},
		"label":          {&musterv1.ConfigSpec{Name: "a", Data: []byte("x"), Labels: map[string]string{"": "x"}}, codes.InvalidArgument, []string{"spec.labels"}},
		"templating":     {&musterv1.ConfigSpec{Name: "a", Data: []byte("{{"), Templating: &musterv1.Driver{Name: "golang"}}, codes.InvalidArgument, []string{"spec.templating"}},
		"name is taken":  {configSpec("TAKEN", []byte("x")), codes.AlreadyExists, nil},
		"longest name":   {configSpec(strings.Repeat("a", 64), []byte("x")), codes.OK, nil},
		"one letter":     {configSpec("b", []byte("x")), codes.OK, nil},
		"dots and lines": {configSpec("c-_.9", []byte("x")), codes.OK, nil},
	} {
		subtest(t, name, func(t *testing.T) {
			a := start(t)
			a.createConfig(configSpec("taken", []byte("data")))
			_, err := a.CreateConfig(t.Context(), &musterv1.CreateConfigRequest{Spec: c.spec})
			wantCode(t, err, c.code, c.fields...)
		})
	}
}

func TestConfigInUseIsNotRemoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		used := a.createConfig(configSpec("used", []byte("x")))
		a.serviceWith("web", used.Id)
		a.serviceWith("api", used.Id)
		_, err := a.RemoveConfig(t.Context(), &musterv1.RemoveConfigRequest{Config: "used"})
		wantCode(t, err, codes.FailedPrecondition)
		if !strings.Contains(err.Error(), `config "used" is used by services (api, web)`) {
			t.Errorf("error is %v", err)
		}
		a.update(func(tx *store.Tx) { a.Tables.Services.Delete(tx, "id-api") })

		// A service that has left the config can still go back to it until the update is done.
		a.update(func(tx *store.Tx) {
			e, _ := a.Tables.Services.Get(tx, "id-web")
			a.Tables.Services.Put(tx, "id-web", &recordv1.Service{
				Spec: e.Value.Spec, FormerTaskDigest: e.Value.TaskDigest, SpecVersion: 2, FormerSpecVersion: 1, Attempt: 1,
			})
		})
		_, err = a.RemoveConfig(t.Context(), &musterv1.RemoveConfigRequest{Config: "used"})
		wantCode(t, err, codes.FailedPrecondition)
		a.update(func(tx *store.Tx) {
			a.Tables.Rollouts.Put(tx, "id-web", &recordv1.Rollout{State: musterv1.UpdateStatus_COMPLETED, SpecVersion: 2, Attempt: 1})
		})
		if _, err := a.RemoveConfig(t.Context(), &musterv1.RemoveConfigRequest{Config: "used"}); err != nil {
			t.Errorf("remove after the update: %v", err)
		}
		_, err = a.GetConfig(t.Context(), &musterv1.GetConfigRequest{Config: "used"})
		wantCode(t, err, codes.NotFound)
		// Its name is free.
		a.createConfig(configSpec("used", []byte("y")))
	})
}

func TestDamagedDataOfAConfigIsNotReturned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		spec := configSpec("settings", []byte("a=1"))
		f.createConfig(spec)
		f.update(func(tx *store.Tx) {
			f.Tables.Blobs.Put(tx, state.ChunkKey(state.BlobDigest([]byte("a=1")), 0), &recordv1.Blob{Data: []byte("a=2")})
		})
		get := func() (*musterv1.GetConfigResponse, error) {
			return f.GetConfig(t.Context(), &musterv1.GetConfigRequest{Config: "settings"})
		}
		_, err := get()
		wantCode(t, err, codes.DataLoss)
		if !strings.Contains(err.Error(), `config "settings"`) {
			t.Errorf("the error does not name the config: %v", err)
		}
		spec.Name = "same"
		f.createConfig(spec)
		if resp, err := get(); err != nil || string(resp.Config.Spec.Data) != "a=1" {
			t.Errorf("after another config with the same data: %v, %v", resp, err)
		}
	})
}

func TestListConfigs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		for i := range 5 {
			spec := configSpec(fmt.Sprint("app-", i), []byte("x"))
			spec.Labels = map[string]string{"n": fmt.Sprint(i)}
			a.createConfig(spec)
		}
		a.createConfig(configSpec("web", []byte("x")))
		names := func(req *musterv1.ListConfigsRequest) string {
			t.Helper()
			var all []string
			for {
				resp, err := a.ListConfigs(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range resp.Configs {
					all = append(all, c.Spec.Name)
				}
				if req.PageToken = resp.NextPageToken; req.PageToken == "" {
					return func() string { slices.Sort(all); return strings.Join(all, " ") }()
				}
			}
		}
		for want, req := range map[string]*musterv1.ListConfigsRequest{
			"app-0 app-1 app-2 app-3 app-4 web": {PageSize: 2},
			"app-1 web":                         {Names: []string{"APP-1", "web"}},
			"app-0 app-1 app-2 app-3 app-4":     {NamePrefixes: []string{"App-"}},
			"app-3":                             {Labels: []string{"n=3"}},
			"web":                               {Labels: []string{"!n"}},
		} {
			if got := names(req); got != want {
				t.Errorf("%v lists %q, want %q", req, got, want)
			}
		}
	})
}
