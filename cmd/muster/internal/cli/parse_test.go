package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func TestParsePort(t *testing.T) {
	tests := map[string]*musterv1.PortConfig{
		"80":                              {TargetPort: 80},
		"8080:80":                         {PublishedPort: 8080, TargetPort: 80},
		"8080:80/udp":                     {PublishedPort: 8080, TargetPort: 80, Protocol: musterv1.PortConfig_UDP},
		"published=0,target=80,mode=host": {TargetPort: 80, PublishMode: musterv1.PortConfig_HOST},
		"published=8080,target=80,protocol=tcp,mode=ingress,name=http": {
			Name: "http", PublishedPort: 8080, TargetPort: 80, Protocol: musterv1.PortConfig_TCP, PublishMode: musterv1.PortConfig_INGRESS,
		},
		"":                      nil,
		"0":                     nil,
		"65536":                 nil,
		"80:x":                  nil,
		"80/icmp":               nil,
		"target=80,mode=any":    nil,
		"target=80,colour=blue": nil,
		"published=1":           nil,
	}
	for v, want := range tests {
		got, err := parsePort(v)
		if (err != nil) != (want == nil) {
			t.Errorf("parsePort(%q) error = %v, want one: %v", v, err, want == nil)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); err == nil && diff != "" {
			t.Errorf("parsePort(%q) (-want +got):\n%s", v, diff)
		}
	}
}

func TestParseMount(t *testing.T) {
	tests := map[string]*musterv1.Mount{
		"type=bind,source=/a,target=/b,readonly": {Type: musterv1.Mount_BIND, Source: "/a", Target: "/b", ReadOnly: true},
		"src=data,dst=/b":                        {Type: musterv1.Mount_VOLUME, Source: "data", Target: "/b"},
		"type=tmpfs,target=/b,tmpfs-size=1024":   {Type: musterv1.Mount_TMPFS, Target: "/b", TmpfsOptions: &musterv1.TmpfsOptions{SizeBytes: 1024}},
		"type=bind,target=/b,ro=false":           {Type: musterv1.Mount_BIND, Target: "/b"},
		"type=floppy":                            nil,
		"type=bind,readonly=perhaps":             nil,
		"":                                       nil,
	}
	for v, want := range tests {
		got, err := parseMount(v)
		if (err != nil) != (want == nil) {
			t.Errorf("parseMount(%q) error = %v, want one: %v", v, err, want == nil)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); err == nil && diff != "" {
			t.Errorf("parseMount(%q) (-want +got):\n%s", v, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("8080:80/tcp")
	f.Add("type=bind,source=/a,target=/b")
	f.Add("nofile=1:2")
	f.Fuzz(func(t *testing.T, v string) {
		// Errors are fine; nothing may panic.
		_, _ = parsePort(v)
		_, _ = parseMount(v)
		_, _ = parseUlimit(v)
		_, _ = nanoCPUs(v)
		_, _ = parseLabels("label", []string{v})
	})
}

func TestPrintable(t *testing.T) {
	if got, want := printable("a\tb\nc\x1b[31md\u009be"), "a b c[31mde"; got != want {
		t.Errorf("printable = %q, want %q", got, want)
	}
}
