package apid_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func configSpec(name string, data []byte) *musterv1.ConfigSpec {
	return &musterv1.ConfigSpec{Name: name, Data: data, Labels: map[string]string{"team": "web"}}
}

func (a *api) createConfig(spec *musterv1.ConfigSpec) *musterv1.Config {
	a.t.Helper()
	resp, err := a.CreateConfig(a.t.Context(), &musterv1.CreateConfigRequest{Spec: spec})
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.Config
}

// large is as much data as a config can have, no two chunks of which are equal.
func large() []byte {
	data := make([]byte, 1000<<10)
	for i := range data {
		data[i] = byte(i >> 10)
	}
	return data
}

// blobs are the keys of all blobs and chunks.
func (c *cluster) blobs() (keys []string) {
	for e := range c.tables.Blobs.Scan(c.store.Snapshot(), "") {
		keys = append(keys, e.Key)
	}
	return keys
}

func TestConfigIsReturnedWithDataByGetOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		data := large()
		created := a.createConfig(configSpec("nginx.conf", data))
		if created.Spec.Name != "nginx.conf" || created.Spec.Labels["team"] != "web" || created.Size != uint64(len(data)) ||
			created.Digest != state.BlobKey(state.BlobDigest(data)) || len(created.Spec.Data) > 0 || created.Meta.GetVersion() == 0 {
			t.Errorf("created: %v", created)
		}
		for _, ref := range []string{created.Id, "NGINX.conf", created.Id[:8]} {
			got, err := a.GetConfig(t.Context(), &musterv1.GetConfigRequest{Config: ref})
			if err != nil || !bytes.Equal(got.Config.Spec.Data, data) || got.Config.Id != created.Id {
				t.Errorf("get %q: %v, data is right: %v", ref, err, bytes.Equal(got.GetConfig().GetSpec().GetData(), data))
			}
		}
		list, err := a.ListConfigs(t.Context(), &musterv1.ListConfigsRequest{})
		if err != nil || len(list.Configs) != 1 || len(list.Configs[0].Spec.Data) > 0 {
			t.Errorf("list: %v, %v", list, err)
		}
		_, err = a.GetConfig(t.Context(), &musterv1.GetConfigRequest{Config: "other"})
		wantCode(t, err, codes.NotFound)
	})
}

func TestConfigsWithEqualDataShareIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		data := large()
		a.createConfig(configSpec("one", data))
		a.createConfig(configSpec("two", data))
		settled(t, "the data is there once, in eight chunks", func() bool { return len(c.blobs()) == 9 })
		for _, name := range []string{"one", "two"} {
			if _, err := a.RemoveConfig(t.Context(), &musterv1.RemoveConfigRequest{Config: name}); err != nil {
				t.Fatal(err)
			}
			if name == "one" {
				got, err := a.GetConfig(t.Context(), &musterv1.GetConfigRequest{Config: "two"})
				if err != nil || !bytes.Equal(got.Config.Spec.Data, data) {
					t.Fatalf("the other config has lost its data: %v", err)
				}
			}
		}
		eventually(t, "data that no config has is removed", func() bool { return len(c.blobs()) == 0 })
	})
}

// Data of a config that was never written is removed.
func TestSweepRemovesDataOfConfigsThatWereNotCreated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		digest := state.BlobDigest([]byte("x"))
		c.update(func(tx *store.Tx) {
			c.tables.Blobs.Put(tx, state.BlobKey(digest), &recordv1.Blob{Size: 1, UsedAt: 1})
			c.tables.Blobs.Put(tx, state.ChunkKey(digest, 0), &recordv1.Blob{Data: []byte("x")})
		})
		kept := c.apid().createConfig(configSpec("kept", []byte("y")))
		eventually(t, "only the data of the config is left", func() bool {
			keys := c.blobs()
			return len(keys) == 2 && strings.HasPrefix(keys[0], kept.Digest)
		})
	})
}

// TestConfigsOfTheClusterAreBoundedTogether has two replicas of apid, and data of 100
// bytes at most.
func TestConfigsOfTheClusterAreBoundedTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		bounded := func(cfg *apid.Config) { cfg.MaxConfigBytes = 100 }
		a, b := c.apid(bounded), c.apid(bounded)
		a.createConfig(configSpec("most", make([]byte, 60)))
		b.createConfig(configSpec("same", make([]byte, 60)))
		b.createConfig(configSpec("rest", make([]byte, 40)))
		_, err := a.CreateConfig(t.Context(), &musterv1.CreateConfigRequest{Spec: configSpec("more", []byte("x"))})
		wantCode(t, err, codes.ResourceExhausted)
		for _, part := range []string{"may have 100 bytes", "they have 100", "this one has 1", "remove configs that no service uses", "--max-config-bytes"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("error %q lacks %q", err, part)
			}
		}
		if got := a.rest(http.MethodPost, "/v1/configs", `{"name": "more", "data": "eA=="}`); got.code != http.StatusTooManyRequests {
			t.Errorf("REST answers %d %s", got.code, got.body)
		}
		a.createConfig(configSpec("equal", make([]byte, 40)))
		if _, err := a.RemoveConfig(t.Context(), &musterv1.RemoveConfigRequest{Config: "rest"}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.RemoveConfig(t.Context(), &musterv1.RemoveConfigRequest{Config: "equal"}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "there is room once the data of removed configs is gone", func() bool {
			_, err := b.CreateConfig(t.Context(), &musterv1.CreateConfigRequest{Spec: configSpec("more", make([]byte, 39))})
			return err == nil
		})
	})
}

// TestConfigsCreatedAtOnceStayWithinTheBound creates configs in parallel at two replicas.
func TestConfigsCreatedAtOnceStayWithinTheBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		bounded := func(cfg *apid.Config) { cfg.MaxConfigBytes = 100 }
		replicas := []*api{c.apid(bounded), c.apid(bounded)}
		codesOf := make([]codes.Code, 10)
		var running sync.WaitGroup
		for i := range codesOf {
			running.Go(func() {
				_, err := replicas[i%2].CreateConfig(t.Context(), &musterv1.CreateConfigRequest{Spec: configSpec(fmt.Sprint("c", i), bytes.Repeat([]byte{byte(i)}, 30))})
				codesOf[i] = status.Code(err)
			})
		}
		running.Wait()
		counts := map[codes.Code]int{}
		for _, code := range codesOf {
			counts[code]++
		}
		if counts[codes.OK] != 3 || counts[codes.ResourceExhausted] != len(codesOf)-3 {
			t.Errorf("codes are %v, want three OK and the rest ResourceExhausted", counts)
		}
	})
}

// Configs with the same data come and go, while a sweep removes what is unused. No config
// is ever without its data.
func TestConfigKeepsItsDataWhileOthersAreSwept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		replicas := []*api{c.apid(quickSweep), c.apid(quickSweep)}
		c.spreadTransactions()
		var running sync.WaitGroup
		for i, replica := range replicas {
			running.Go(func() {
				for n := range 100 {
					name := fmt.Sprint("config-", i)
					// With so short a grace the sweep may remove the data before the config is
					// written, and the call says so.
					_, err := replica.CreateConfig(context.Background(), &musterv1.CreateConfigRequest{Spec: configSpec(name, []byte("data"))})
					if status.Code(err) == codes.Unavailable {
						continue
					}
					if err != nil {
						t.Errorf("create %d: %v", n, err)
						return
					}
					got, err := replica.GetConfig(context.Background(), &musterv1.GetConfigRequest{Config: name})
					if err != nil || string(got.Config.Spec.Data) != "data" {
						t.Errorf("get %d: %v, %v", n, got, err)
					}
					if _, err := replica.RemoveConfig(context.Background(), &musterv1.RemoveConfigRequest{Config: name}); err != nil {
						t.Errorf("remove %d: %v", n, err)
					}
					time.Sleep(rand.N(20 * time.Millisecond))
				}
			})
		}
		running.Wait()
		eventually(t, "nothing is left", func() bool { return len(c.blobs()) == 0 })
	})
}

// A name is one config's, whichever replicas are asked at the same time.
func TestConfigNameIsUnique(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		replicas := []*api{c.apid(), c.apid()}
		c.spreadTransactions()
		codesOf := make([]codes.Code, 8)
		var running sync.WaitGroup
		for i := range codesOf {
			running.Go(func() {
				_, err := replicas[i%2].CreateConfig(t.Context(), &musterv1.CreateConfigRequest{Spec: configSpec("one", []byte{byte(i)})})
				codesOf[i] = status.Code(err)
			})
		}
		running.Wait()
		counts := map[codes.Code]int{}
		for _, code := range codesOf {
			counts[code]++
		}
		if counts[codes.OK] != 1 || counts[codes.AlreadyExists] != len(codesOf)-1 {
			t.Errorf("codes are %v, want one OK and the rest AlreadyExists", counts)
		}
	})
}

// TestServiceRefersToConfigs has services name configs by their names or ids.
func TestServiceRefersToConfigs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		config := a.createConfig(configSpec("app", []byte("x")))
		spec := webSpec("web")
		spec.Task.GetContainer().Configs = []*musterv1.ConfigReference{{ConfigName: "app"}, {ConfigId: config.Id, Target: &musterv1.ConfigReference_File{File: &musterv1.FileTarget{Name: "/etc/app"}}}}
		spec.Task.ResourceReferences = []*musterv1.ResourceReference{{Type: musterv1.ResourceReference_CONFIG, Id: "app"}}
		resp, err := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: spec})
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range resp.Service.Spec.Task.GetContainer().Configs {
			if ref.ConfigId != config.Id || ref.ConfigName != "app" {
				t.Errorf("reference is %v, want id and name", ref)
			}
		}
		if ref := resp.Service.Spec.Task.ResourceReferences[0]; ref.Id != config.Id || ref.File.GetName() != "app" {
			t.Errorf("reference is %v, want id and file name", ref)
		}
		_, err = a.RemoveConfig(t.Context(), &musterv1.RemoveConfigRequest{Config: "app"})
		wantCode(t, err, codes.FailedPrecondition)

		spec = webSpec("other")
		spec.Task.GetContainer().Configs = []*musterv1.ConfigReference{{ConfigName: "gone"}}
		_, err = a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: spec})
		wantCode(t, err, codes.FailedPrecondition, "spec.task.container.configs[0]")
	})
}

func TestWatchConfigs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		w := a.watch(&musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_CONFIG}, Labels: []string{"team=web"}, IncludeOld: true})
		config := a.createConfig(configSpec("app", []byte("data")))
		e := w.until("the creation", is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_CONFIG, config.Id))
		if e.GetConfig().GetSpec().GetName() != "app" || len(e.GetConfig().GetSpec().GetData()) > 0 {
			t.Errorf("created: %v", e)
		}
		token := w.token
		if _, err := a.UpdateConfig(t.Context(), &musterv1.UpdateConfigRequest{Config: "app", Version: config.Meta.Version, Spec: &musterv1.ConfigSpec{}}); err != nil {
			t.Fatal(err)
		}
		e = w.until("the update", is(musterv1.WatchAction_UPDATE, musterv1.ObjectKind_CONFIG, config.Id))
		if e.GetOldConfig().GetSpec().GetLabels()["team"] != "web" || len(e.GetConfig().GetSpec().GetLabels()) > 0 {
			t.Errorf("updated: %v", e)
		}
		if _, err := a.RemoveConfig(t.Context(), &musterv1.RemoveConfigRequest{Config: "app"}); err != nil {
			t.Fatal(err)
		}
		resumed := a.watch(&musterv1.WatchRequest{ResumeToken: token})
		resumed.until("the removal", is(musterv1.WatchAction_DELETE, musterv1.ObjectKind_CONFIG, config.Id))

		// A token of the version that had no configs continues while there are none.
		_, numbers := readToken(t, a.watch(&musterv1.WatchRequest{}).token)
		_, err := c.apid().tryWatch(&musterv1.WatchRequest{ResumeToken: fixedToken(numbers)})
		wantCode(t, err, codes.OutOfRange)
	})
}

func TestConfigsOverREST(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		data := large()
		body := fmt.Sprintf(`{"name": "app", "labels": {"team": "web"}, "data": %q}`, base64.StdEncoding.EncodeToString(data))
		created := a.rest(http.MethodPost, "/v1/configs", body)
		if created.code != http.StatusOK || created.json["size"] != fmt.Sprint(len(data)) {
			t.Fatalf("create: %d %s", created.code, created.body)
		}
		got := a.rest(http.MethodGet, "/v1/configs/app", "")
		spec, _ := got.json["spec"].(map[string]any)
		if text, _ := spec["data"].(string); got.code != http.StatusOK || text != base64.StdEncoding.EncodeToString(data) {
			t.Errorf("get: %d, %d bytes", got.code, len(text))
		}
		list := a.rest(http.MethodGet, "/v1/configs?labels=team%3Dweb", "")
		if configs, _ := list.json["configs"].([]any); list.code != http.StatusOK || len(configs) != 1 || strings.Contains(list.body, `"data"`) {
			t.Errorf("list: %d %s", list.code, list.body)
		}
		version := got.json["meta"].(map[string]any)["version"]
		updated := a.rest(http.MethodPut, fmt.Sprintf("/v1/configs/app?version=%s", version), `{"labels": {"team": "api"}}`)
		if updated.code != http.StatusOK || !strings.Contains(updated.body, `"api"`) {
			t.Errorf("update: %d %s", updated.code, updated.body)
		}
		if again := a.rest(http.MethodPost, "/v1/configs", body); again.code != http.StatusConflict {
			t.Errorf("create again: %d %s", again.code, again.body)
		}
		if wrong := a.rest(http.MethodPost, "/v1/configs", `{"name": "b", "data": "not base64!"}`); wrong.code != http.StatusBadRequest {
			t.Errorf("data that is not base64: %d %s", wrong.code, wrong.body)
		}
		if removed := a.rest(http.MethodDelete, "/v1/configs/app", ""); removed.code != http.StatusOK {
			t.Errorf("remove: %d %s", removed.code, removed.body)
		}
		if gone := a.rest(http.MethodGet, "/v1/configs/app", ""); gone.code != http.StatusNotFound {
			t.Errorf("get after: %d %s", gone.code, gone.body)
		}
	})
}
