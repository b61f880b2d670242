// Command vcsim serves VMware's own simulated vCenter (package simulator of govmomi, as Debian
// ships it) over TLS on 127.0.0.1, as a counterpart that Gantry's developers did not write.
//
// In: how many virtual machines, whether a standalone ESXi. Out: one line on standard output with
// the port and the SHA-256 of its certificate. It runs until it is killed; its datastores are
// folders in TMPDIR.
package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/url"
	"time"

	"github.com/vmware/govmomi/simulator"
)

// certificate makes what the simulator lacks: its own has a key of 1024 bits, which clients of
// today refuse.
func certificate() tls.Certificate {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true,

		BasicConstraintsValid: true,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		log.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}
}

func main() {
	machines := flag.Int("machines", 2, "virtual machines in each resource pool")
	esx := flag.Bool("esx", false, "a standalone ESXi instead of a vCenter")
	flag.Parse()

	model := simulator.VPX()
	if *esx {
		model = simulator.ESX()
	}
	model.Machine = *machines
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate()}}
	model.Service.Listen = &url.URL{
		Host: "127.0.0.1:0",
		User: url.UserPassword("gantry", "correct horse"),
	}
	server := model.Service.NewServer()
	fmt.Printf("listening %s %x\n", server.URL.Port(), sha256.Sum256(server.Certificate().Raw))
	select {}
}
