"""docs/settings.md is generated, and up to date."""

from tools.document_settings import PAGE, settings_page


def test_the_settings_page_lists_the_configuration_models_as_they_are():
    assert PAGE.read_text() == settings_page(), "run: poetry poe document-settings"


def test_a_setting_is_listed_with_its_type_default_and_description():
    assert "| `size` | integer > 0 | required |" in settings_page()
