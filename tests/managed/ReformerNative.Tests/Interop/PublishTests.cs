using ReformerNative.Tensors;

namespace ReformerNative.Tests.Interop;

/// <summary>
/// An app with a project reference finds the native library however it is published as a single file.
/// </summary>
public sealed class PublishTests
{
    [TestCase("IncludeNativeLibrariesForSelfExtract")]
    [TestCase("IncludeAllContentForSelfExtract")]
    public void SingleFile_SelfExtracting_FindsTheLibrary(string option)
    {
        using var directory = new TemporaryDirectory();
        string configuration = Path.GetFileName(Path.TrimEndingDirectorySeparator(AppContext.BaseDirectory));
        File.WriteAllText(
            Path.Combine(directory.Path, "App.csproj"),
            $"""
            <Project Sdk="Microsoft.NET.Sdk">
              <PropertyGroup>
                <OutputType>Exe</OutputType>
                <TargetFramework>net10.0</TargetFramework>
                <RuntimeIdentifier>linux-x64</RuntimeIdentifier>
                <SelfContained>false</SelfContained>
                <PublishSingleFile>true</PublishSingleFile>
                <EnableSingleFileAnalyzer>false</EnableSingleFileAnalyzer>
                <{option}>true</{option}>
                <InvariantGlobalization>true</InvariantGlobalization>
                <NuGetAudit>false</NuGetAudit>
              </PropertyGroup>
              <ItemGroup>
                <ProjectReference Include="{Repository.PathOf("managed", "ReformerNative", "ReformerNative.csproj")}" />
              </ItemGroup>
            </Project>
            """);
        File.WriteAllText(
            Path.Combine(directory.Path, "Program.cs"),
            "System.Console.WriteLine(ReformerNative.Tensors.NativeRuntime.Version);");

        // The library that these tests run with, as they were built: nothing of the repository is built again.
        string output = Path.Combine(directory.Path, "out");
        (int exitCode, string log, string errors) = Repository.Run(
            "dotnet", "publish", directory.Path, "--configuration", configuration, "--output", output, "--nologo",
            "-p:BuildProjectReferences=false", "-p:RfnBuildNative=false",
            $"-p:RfnNativeDirectory={AppContext.BaseDirectory}");
        Assert.That(exitCode, Is.Zero, log + errors);
        (exitCode, string version, errors) = Repository.Run(
            "env", $"DOTNET_BUNDLE_EXTRACT_BASE_DIR={Path.Combine(directory.Path, "unpacked")}",
            Path.Combine(output, "App"));
        Assert.That(exitCode, Is.Zero, errors);
        Assert.That(version.Trim(), Is.EqualTo(NativeRuntime.Version));
    }
}
